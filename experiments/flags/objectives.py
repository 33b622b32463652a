"""The flags of the pre-training objectives."""

import dataclasses

from experiments.flags.binder import Settings, SettingsError, flag
from experiments.flags.traits import EDITS, TRAITS, traits_of

AUGMENTATIONS = (*EDITS, 'slice')
# The objectives that can share their views.
OF_VIEWS = ('pooled_items', 'adaptssr')
# The shortest slice, unless the encoder reads fewer behaviours.
_SLICE_FROM = 15


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentationSettings(Settings, group='objective'):
  """The strengths of the augmentations."""

  crop_ratio: float = flag(
    0.4, 'Share of the behaviours that crop keeps.', above=0.0, high=1.0
  )
  mask_ratio: float | None = flag(
    0.6, 'Share of the behaviours that are masked.', above=0.0, high=1.0
  )
  reorder_ratio: float = flag(
    0.6, 'Share of the behaviours that reorder shuffles.', above=0.0, high=1.0
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveSettings(AugmentationSettings, group='objective'):
  """The pre-training objectives and their settings."""

  objective: tuple[str, ...] = flag(
    ('adaptssr',),
    'The pre-training objective, or several, whose losses are added. '
    'adaptssr: rank augmented views. masked_items: predict masked items. '
    'causal_items: predict each next item. pooled_items: predict the items of '
    'a slice from the vector of another slice of the user. next_items, msdp: '
    'predict, from the vector of a prefix, the items that follow, or their '
    'distribution. ptum: distinguish behaviours from random items. ecl: detect '
    'replaced behaviours. clue, cl4srec, idicl, ccl, ccl_filled, coles, '
    'coserec, duorec: contrast users. MODULE:FUNCTION: your own objective. '
    f'Available: {", ".join(TRAITS)}.',
  )
  objective_weights: tuple[str, ...] = flag(
    (), 'The weights of the --objective losses, in their order [1 each].'
  )
  augmentations: tuple[str, ...] | None = flag(
    None,
    'adaptssr, ccl: explicit augmentations. One of crop, mask and reorder is '
    'drawn per view; with slice, each view is first a random run of the whole '
    'history [adaptssr together with pooled_items: slice; else '
    'crop,mask,reorder].',
    choices=AUGMENTATIONS,
  )
  second_augmentations: tuple[str, ...] | None = flag(
    None,
    'adaptssr, ccl: explicit augmentations of the second view [those of the '
    'first].',
    choices=AUGMENTATIONS,
  )
  slice_lengths: tuple[str, ...] = flag(
    (),
    'The shortest and longest slice, in behaviours [15 and --max_length].',
  )
  num_slices: int = flag(2, 'Explicit views of each user.', low=2)
  substitute_ratio: float = flag(
    0.1,
    'coserec: share of the behaviours that are replaced by similar items.',
    above=0.0,
    high=1.0,
  )
  insert_ratio: float = flag(
    0.4,
    'coserec: share of the behaviours before which a similar item is inserted.',
    above=0.0,
    high=1.0,
  )
  num_similar: int = flag(
    1, 'coserec: number of most similar items from which one is drawn.', low=1
  )
  num_next: int = flag(
    10, 'next_items: behaviours after the prefix that are predicted.', low=1
  )
  mask_ratio: float | None = flag(
    None,
    'Share of the behaviours that are masked [0.6; masked_items, msdp and '
    'ccl_filled 0.3; ecl 0.2].',
    above=0.0,
    high=1.0,
  )
  fusion: str = flag(
    'adaptive',
    'Lambda: adaptive (one per user), batch_mean, or a number in [0, 1].',
  )
  loss_form: str = flag(
    'pairs',
    'adaptssr: rank views by pairs, as the paper does, or as a list.',
    choices=('pairs', 'list'),
  )
  temperature: float | None = flag(
    None,
    'Temperature, which divides the similarities of users [1, as in the '
    'papers; clue and idicl 0.1; ecl 0.05].',
    above=0.0,
  )
  curriculum_steps: int = flag(
    0,
    'ccl, ccl_filled: updates until augmentations have their full strength; 0: '
    'the whole run.',
    low=0,
  )
  smooth: float = flag(
    0.0,
    'adaptssr: smoothness of the minimum and maximum of hard pairs, in units '
    'of similarity; 0: none, as in the paper.',
    low=0.0,
  )
  hard_negatives: bool = flag(
    True, 'adaptssr: rank only the hardest pairs of a batch.'
  )
  sampled_items: int = flag(
    0,
    'Objectives that predict items: train on a softmax over this many sampled '
    'items; 0: over all of them.',
    low=0,
  )
  output_bias: str = flag(
    'shares',
    'Objectives that predict items: the initial bias of each item, the log of '
    'its share of all behaviours (shares), or zero.',
    choices=('shares', 'zeros'),
  )

  max_window: int = flag(
    32, 'msdp: behaviours in the longest window that is predicted.', low=1
  )
  msdp_regularizer: float = flag(
    0.1,
    'msdp: weight of the SimSiam term of the masked and the unmasked prefix.',
    low=0.0,
  )
  ecl_contrast: float = flag(
    0.005,
    'ecl: weight of the loss that contrasts dropout passes; masked items have '
    'weight 1.',
    low=0.0,
  )
  ecl_discriminator: float = flag(
    0.25,
    'ecl: weight of the loss of the discriminator; masked items have weight 1.',
    low=0.0,
  )

  def __post_init__(self) -> None:
    if isinstance(self.objective, str):
      # A caller of `main(settings)` may give a single string.
      object.__setattr__(self, 'objective', (self.objective,))
    super().__post_init__()
    unknown = [
      name for name in self.objective if ':' not in name and name not in TRAITS
    ]
    if unknown or not self.objective:
      raise SettingsError(
        f'--objective must be {" or ".join(TRAITS)}, or MODULE:FUNCTION, not '
        f'{",".join(unknown)!r}'
      )


def uses_histories(settings: ObjectiveSettings) -> bool:
  """Whether batches contain whole histories, from which slices are drawn."""
  names = augmentations_of(settings) + (settings.second_augmentations or ())
  traits = [traits_of(name) for name in settings.objective]
  return any(each.sees_histories for each in traits) or (
    'slice' in names and any(each.is_augmented for each in traits)
  )


def augmentations_of(
  settings: ObjectiveSettings, objective: str = 'adaptssr'
) -> tuple[str, ...]:
  """The explicit augmentations of the first view."""
  if settings.augmentations is not None:
    return settings.augmentations
  is_slice = objective == 'adaptssr' and 'pooled_items' in settings.objective
  return ('slice',) if is_slice else EDITS


def shares_views(settings: ObjectiveSettings) -> bool:
  """Whether AdaptSSR and pooled items use the same views: plain slices."""
  return set(OF_VIEWS) <= set(settings.objective) and (
    augmentations_of(settings) == ('slice',)
    and settings.second_augmentations in (None, ('slice',))
  )


def slice_lengths_of(
  settings: ObjectiveSettings, max_length: int
) -> tuple[int, int]:
  """The lengths of the shortest and of the longest slice."""
  if not settings.slice_lengths:
    return min(_SLICE_FROM, max_length), max_length
  text = ','.join(settings.slice_lengths)
  try:
    low, high = map(int, settings.slice_lengths)
  except ValueError:
    low = high = 0
  if not 1 <= low <= high:
    raise SettingsError(
      '--slice_lengths must be two numbers, the shortest and longest slice, '
      f'such as 15,100; not {text}'
    )
  if high > max_length:
    raise SettingsError(
      f'--slice_lengths={text}: the encoder reads {max_length} behaviours; '
      'shorten the slices or give a larger --max_length'
    )
  return low, high


def temperature_of(settings: ObjectiveSettings, objective: str) -> float:
  """`--temperature`, or the default of an objective."""
  return settings.temperature or traits_of(objective).temperature


def mask_ratio_of(settings: ObjectiveSettings, objective: str) -> float:
  """`--mask_ratio`, or the default of an objective."""
  return settings.mask_ratio or traits_of(objective).mask_ratio


def parse_weights(settings: ObjectiveSettings) -> dict[str, float]:
  """`--objective_weights` by objective; empty if the flag is not given."""
  words = settings.objective_weights
  if not words:
    return {}
  try:
    weights = [float(word) for word in words]
  except ValueError:
    weights = []
  if len(weights) != len(settings.objective) or not all(
    0 < weight < float('inf') for weight in weights
  ):
    raise SettingsError(
      f'--objective_weights={",".join(words)} must be a number above 0 for '
      f'each of --objective={",".join(settings.objective)}'
    )
  return dict(zip(settings.objective, weights, strict=True))


def parse_fusion(text: str) -> str | float:
  """Parses `--fusion`: a word, or a number in [0, 1]."""
  if text in ('adaptive', 'batch_mean'):
    return text
  try:
    value = float(text)
  except ValueError:
    value = -1.0
  if not 0 <= value <= 1:
    raise SettingsError(
      f'--fusion must be adaptive, batch_mean or a number in [0, 1], not {text}'
    )
  return value
