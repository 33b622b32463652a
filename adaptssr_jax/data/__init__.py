"""Data sets of users as TFDS builders, and the batches made from them."""

from adaptssr_jax.data.builder import UserBuilder
from adaptssr_jax.data.complete_journey import CompleteJourney
from adaptssr_jax.data.movielens_users import MovielensUsers
from adaptssr_jax.data.prepare import is_prepared
from adaptssr_jax.data.prepared.arrays import (
  UserArrays,
  UserData,
  load,
  resplit,
)
from adaptssr_jax.data.prepared.batches import batch_at, steps_per_epoch
from adaptssr_jax.data.ragged import Ragged
from adaptssr_jax.data.rows import DataError, Rows, Vocabulary
from adaptssr_jax.data.synthetic_users import SyntheticUsers
from adaptssr_jax.data.ta_feng import TaFeng
from adaptssr_jax.data.ttl import Ttl
from adaptssr_jax.data.user_tables import UserTables, user_tables_config

__all__ = [
  'CompleteJourney',
  'DataError',
  'MovielensUsers',
  'Ragged',
  'Rows',
  'SyntheticUsers',
  'TaFeng',
  'Ttl',
  'UserArrays',
  'UserBuilder',
  'UserData',
  'UserTables',
  'Vocabulary',
  'batch_at',
  'is_prepared',
  'load',
  'resplit',
  'steps_per_epoch',
  'user_tables_config',
]
