"""How many sequences a step encodes of a user, and how long they are."""

import numpy as np

from experiments.flags.objectives import (
  EDITS,
  ObjectiveSettings,
  augmentations_of,
  shares_views,
  slice_lengths_of,
)
from experiments.flags.traits import traits_of


def encoded_of_a_user(settings: ObjectiveSettings) -> int:
  """How many sequences are encoded of each user in a step."""
  total = 0
  for name in settings.objective:
    if name == 'pooled_items' and shares_views(settings):
      # It has a pass of AdaptSSR, which sees the same views.
      continue
    traits = traits_of(name)
    total += (traits.views or settings.num_slices) * traits.passes
  return total


def encoded_lengths(
  settings: ObjectiveSettings, lengths: np.ndarray, *, max_length: int
) -> np.ndarray:
  """How long the sequences are that are encoded of users so long.

  Args:
    lengths: of users, of their whole histories if slices are drawn of them.
  """
  low, high = slice_lengths_of(settings, max_length)
  # Slices of all lengths that are drawn, as far as there are behaviours.
  drawn = np.linspace(low, high, 16).astype(int)
  slices = np.minimum(lengths[:, None], drawn).reshape(-1)
  recent = np.minimum(lengths, max_length)
  found = []
  for objective in settings.objective:
    if traits_of(objective).is_sliced:
      found.append(slices)
    elif traits_of(objective).is_augmented or objective == 'cl4srec':
      views = _edits_of(settings, objective)
      seen = slices if 'slice' in views else recent
      # Only crop makes a sequence shorter, and in the end of a curriculum most.
      found += [
        np.ceil(settings.crop_ratio * seen) if name == 'crop' else seen
        for name in views
      ]
    elif objective == 'coserec':
      put_in = np.ceil((1 + settings.insert_ratio) * recent)
      cut = np.ceil(settings.crop_ratio * recent)
      # One of five; sequences too short to be cut are few.
      found += [np.minimum(put_in, max_length), cut, recent, recent, recent]
    elif objective == 'duorec':
      found.append(np.clip(lengths - 1, 0, max_length))
    else:
      found.append(recent)
  return np.concatenate(found).astype(int)


def _edits_of(settings: ObjectiveSettings, objective: str) -> tuple[str, ...]:
  """The augmentations of all views of a user, each as often as it is drawn."""
  if objective == 'cl4srec':
    return EDITS
  first = augmentations_of(settings, objective)
  second = settings.second_augmentations or first
  return first + second * (settings.num_slices - 1)
