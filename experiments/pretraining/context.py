"""What objectives are made of, and which behaviours they see."""

import functools
from typing import Any, NamedTuple

import jax

from adaptssr_jax import augment
from adaptssr_jax.data import UserArrays
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.objectives.users import last_behaviours, user_keys
from adaptssr_jax.ops.buckets import Buckets
from adaptssr_jax.training.devices import AXIS
from adaptssr_jax.training.step import LossFn
from experiments.flags.binder import SettingsError
from experiments.flags.objectives import ObjectiveSettings, uses_histories

# Users to whom anchors are compared at a time.
BLOCK = 1024


class Context(NamedTuple):
  """What an objective is made of.

  Args:
    settings: the flags.
    encoder: that is trained.
    buckets: in which parts its sequences are encoded.
    is_training: False asks for the loss to validate with: without dropout,
      where the objective allows that, and of the last behaviours.
    users: who is trained on.
  """

  settings: ObjectiveSettings
  encoder: UserEncoder
  buckets: Buckets
  is_training: bool
  users: UserArrays

  @property
  def encoding(self) -> dict[str, Any]:
    """The settings by which most objectives encode their sequences."""
    return {
      'encoder': self.encoder,
      'deterministic': not self.is_training,
      'buckets': self.buckets,
      'axis_name': AXIS,
    }


def check_dropout(context: Context, objective: str) -> None:
  """Raises `SettingsError` where two dropout passes would be the same."""
  if not context.encoder.dropout_rate:
    raise SettingsError(
      f'--objective={objective} compares dropout passes, which '
      '--dropout_rate=0 makes the same: give a rate above 0'
    )


def on_window(
  context: Context, objective: LossFn, *, length: int | None = None
) -> LossFn:
  """Shows an objective so many behaviours, where batches hold more of them.

  Args:
    objective: (params, batch, key) -> loss, metrics.
    length: how many; None: as many as the encoder reads.
  """
  settings = context.settings
  # Without histories, windows are drawn where batches are made.
  is_drawn = context.is_training and uses_histories(settings)
  return functools.partial(
    see_window,
    objective=objective,
    length=length or context.encoder.max_length,
    window=settings.window if is_drawn else 'last',
  )


def see_window(
  params: dict[str, Any],
  batch: dict[str, Any],
  key: jax.Array,
  *,
  objective: LossFn,
  length: int,
  window: str,
) -> tuple[jax.Array, dict[str, Any]]:
  """An objective of the last behaviours, or of a random run, of histories."""
  items = last_behaviours(batch['items'], length=length)
  if window == 'random':
    window_key, key = jax.random.split(key)
    keys = user_keys(window_key, batch['example_id'])
    draw = functools.partial(augment.random_slice, lengths=(length, length))
    items = jax.vmap(draw)(keys, batch['items'])[:, :length]
  return objective(params, batch | {'items': items}, key)
