"""Pre-training and fine-tuning objectives, one a file."""
