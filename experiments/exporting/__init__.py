"""What `experiments.export` writes: the encoder as a folder to deploy."""
