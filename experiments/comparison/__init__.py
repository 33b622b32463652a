"""The parts of `experiments.compare`."""
