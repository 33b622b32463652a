"""What `experiments.embed` reads and writes beside prepared data sets."""
