"""Errors raised for data or checkpoints that cannot be used."""


class DataError(ValueError):
  """The data cannot be used; the message says where, why and what to do."""


class CheckpointError(ValueError):
  """A checkpoint cannot be used; the message says which and what to do."""
