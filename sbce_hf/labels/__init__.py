"""What flows from stage to stage: label stores, label maps, proportions."""
