"""Parts of `experiments.embed`, and the loader of exported encoders."""
