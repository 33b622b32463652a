"""Frozen vectors, read by a classifier."""
