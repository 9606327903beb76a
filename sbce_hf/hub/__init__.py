"""Publishing on the Hugging Face Hub: a folder is rendered, then sent as one commit."""
