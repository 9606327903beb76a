"""A network and images in, class maps or label maps out."""
