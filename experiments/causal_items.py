"""What the objective of causal items asks of the encoder and the batches."""

import dataclasses
from typing import TypeVar

from experiments.settings import SettingsError
from experiments.shared_settings import EncoderSettings

CAUSAL_ITEMS = 'causal_items'
_Settings = TypeVar('_Settings', bound=EncoderSettings)


def with_causal_encoder(settings: _Settings) -> _Settings:
  """The settings, with the encoder that causal items need unless given.

  Raises:
    SettingsError: another one is given.
  """
  if CAUSAL_ITEMS not in settings.objective:
    return settings
  if settings.causal is False:
    raise SettingsError(
      '--objective=causal_items needs --causal=true, or each state would see '
      'the item that it is to guess: leave --causal out'
    )
  readout = settings.readout
  if settings.objective == (CAUSAL_ITEMS,):
    # The last state is what learns to guess, and the pooling learns nothing.
    readout = readout or 'last'
  return dataclasses.replace(settings, causal=True, readout=readout)


def longest_sequence(settings: EncoderSettings, max_length: int) -> int:
  """Behaviours of a user that a step needs: of causal items one label more."""
  return max_length + (CAUSAL_ITEMS in settings.objective)
