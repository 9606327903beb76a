"""One loop, and what a step is for each thing that is trained."""
