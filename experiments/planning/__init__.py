"""The parts of `--plan`."""
