"""The objective of causal items, from the flags."""

import dataclasses
import functools
from typing import TypeVar

from adaptssr_jax.buckets import Buckets
from adaptssr_jax.devices import AXIS
from adaptssr_jax.models import UserEncoder
from adaptssr_jax.objectives.causal_items import causal_items_objective
from adaptssr_jax.train import LossFn
from experiments.settings import SettingsError
from experiments.shared_settings import LEAVE_ONE_OUT, EncoderSettings

CAUSAL_ITEMS = 'causal_items'
_Settings = TypeVar('_Settings', bound=EncoderSettings)


def with_causal_encoder(settings: _Settings) -> _Settings:
  """The settings, with the encoder that causal items need unless given.

  Raises:
    SettingsError: another one is given.
  """
  if settings.objective != CAUSAL_ITEMS:
    return settings
  if settings.causal is False:
    raise SettingsError(
      '--objective=causal_items needs --causal=true, or each state would see '
      'the item that it is to guess: leave --causal out'
    )
  # The last state is what learns to guess, and the pooling learns nothing.
  return dataclasses.replace(
    settings, causal=True, readout=settings.readout or 'last'
  )


def longest_sequence(settings: EncoderSettings, max_length: int) -> int:
  """Behaviours of a user that a step needs: of causal items one label more."""
  return max_length + (settings.objective == CAUSAL_ITEMS)


def make_causal_items(
  settings: EncoderSettings, encoder: UserEncoder, buckets: Buckets
) -> tuple[LossFn, LossFn]:
  """The loss to train on, and the loss to validate with.

  The users that leave-one-out validates are those it trains on, with one item
  more, which alone is new.
  """
  loss_fn = functools.partial(
    causal_items_objective, encoder=encoder, buckets=buckets, axis_name=AXIS
  )
  train_fn = functools.partial(loss_fn, sampled_items=settings.sampled_items)
  validate_fn = functools.partial(
    loss_fn, deterministic=True, last_only=settings.split == LEAVE_ONE_OUT
  )
  return train_fn, validate_fn
