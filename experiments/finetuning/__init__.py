"""What fine-tuning alone needs."""
