"""Data sets of users as TFDS builders, and the batches made from them."""

from adaptssr_jax.data.arrays import UserArrays, UserData, load
from adaptssr_jax.data.builder import (
  DataError,
  Rows,
  UserBuilder,
  Vocabulary,
)
from adaptssr_jax.data.ragged import Ragged
from adaptssr_jax.data.synthetic_users import SyntheticUsers

__all__ = [
  'DataError',
  'Ragged',
  'Rows',
  'SyntheticUsers',
  'UserArrays',
  'UserBuilder',
  'UserData',
  'Vocabulary',
  'load',
]
