"""What travels to the Hub inside a checkpoint: models, losses, image processing. Imports nothing of ours."""
