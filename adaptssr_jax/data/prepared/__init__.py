"""Prepared data sets as arrays, and batches of them."""
