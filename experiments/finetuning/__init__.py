"""Fine-tuning: its data, tasks, training step and predictions."""
