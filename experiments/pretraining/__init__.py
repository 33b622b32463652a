"""What pre-training alone needs."""
