"""The objectives in plain PyTorch, for another Python, to be timed against."""
