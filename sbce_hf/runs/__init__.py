"""A run: its stages in order, what makes them, and what they are worth."""
