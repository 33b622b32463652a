"""How many sequences a step encodes of a user, and how long they are."""

import numpy as np

from experiments.flags.objectives import (
  ObjectiveSettings,
  augmentations_of,
  shares_views,
  slice_lengths_of,
)


def encoded_of_a_user(settings: ObjectiveSettings) -> int:
  """How many sequences are encoded of each user in a step."""
  return sum(
    {
      'adaptssr': 2 * settings.num_slices,
      # Of the passes of AdaptSSR, if it sees the same views.
      'pooled_items': 0 if shares_views(settings) else settings.num_slices,
    }.get(name, 1)
    for name in settings.objective
  )


def encoded_lengths(
  settings: ObjectiveSettings, lengths: np.ndarray, *, max_length: int
) -> np.ndarray:
  """How long the sequences are that are encoded of users so long.

  Args:
    settings: the flags.
    lengths: of users, of their whole histories if slices are drawn of them.
    max_length: of the encoder.
  """
  first = augmentations_of(settings)
  second = settings.second_augmentations or first
  views = first + second * (settings.num_slices - 1)
  low, high = slice_lengths_of(settings, max_length)
  # Slices of all lengths that are drawn, as far as there are behaviours.
  drawn = np.linspace(low, high, 16).astype(int)
  slices = np.minimum(lengths[:, None], drawn).reshape(-1)
  recent = np.minimum(lengths, max_length)
  found = []
  for objective in settings.objective:
    if objective == 'pooled_items':
      found.append(slices)
    elif objective == 'adaptssr':
      seen = slices if 'slice' in first + second else recent
      # Only crop makes a sequence shorter.
      found += [
        np.ceil(settings.crop_ratio * seen) if name == 'crop' else seen
        for name in views
      ]
    else:
      found.append(recent)
  return np.concatenate(found).astype(int)
