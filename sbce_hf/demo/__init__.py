"""The visitor's page: one photo, its label map and what explains it."""
