"""What `experiments.report` shows, and how it draws it."""
