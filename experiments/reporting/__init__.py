"""The parts of `experiments.report`: its sections, charts and HTML."""
