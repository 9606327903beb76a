"""Label maps become numbers, tables and pictures."""
