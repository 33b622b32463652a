"""The objectives in plain PyTorch, which the benchmark compares with ours."""
