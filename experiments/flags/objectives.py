"""The objectives of pre-training: their properties, and their flags."""

import dataclasses
from typing import NamedTuple

from experiments.flags.binder import Settings, SettingsError, flag

EDITS = ('crop', 'mask', 'reorder')
AUGMENTATIONS = (*EDITS, 'slice')


class Traits(NamedTuple):
  """The properties of an objective."""

  views: int = 1  # sequences of each user that a step encodes; 0: --num_slices
  passes: int = 1  # dropout passes of each of them
  # The augmentations of each view; in TRAITS one tuple stands for all views.
  # Slice is always applied, and one of the others is drawn.
  augmentations: tuple[tuple[str, ...], ...] = ((),)
  is_augmented: bool = False  # whether --augmentations may name others
  sees_histories: bool = False  # whether it needs the whole history of a user
  over_all_items: bool = False  # whether it computes a softmax over all items
  has_bias: bool = False  # whether it learns a bias per item
  from_the_vector: bool = False  # whether the user vector predicts items
  sees_target: bool = False  # whether it needs max_length + 1 behaviours
  sees_partners: bool = False  # whether its batches have `partner_items`
  sees_similar: bool = False  # whether its batches have `similar_items`
  has_curriculum: bool = False  # whether augmentations get stronger in a run
  # --mask_ratio of the masks that it makes itself; None: only the augmentation
  # `mask` makes any.
  mask_ratio: float | None = None
  temperature: float | None = None  # --temperature, if it has this flag
  draws: int = 0  # number of negative items drawn for each user
  fills: bool = False  # whether it replaces masked items by draws of the model
  flags: tuple[str, ...] = ()  # the flags that no other objective has


_AUGMENTED = Traits(
  views=0, augmentations=(EDITS,), is_augmented=True, temperature=1.0
)
_SLICED = {'views': 0, 'augmentations': (('slice',),)}
_ITEMS = Traits(over_all_items=True, has_bias=True)
_FROM_THE_VECTOR = _ITEMS._replace(from_the_vector=True, sees_histories=True)

# With the defaults of flags; see `traits_of`.
TRAITS = {
  'adaptssr': _AUGMENTED._replace(
    passes=2, flags=('fusion', 'loss_form', 'smooth', 'hard_negatives')
  ),
  'masked_items': _ITEMS._replace(mask_ratio=0.3),
  'causal_items': _ITEMS._replace(sees_target=True),
  'pooled_items': _FROM_THE_VECTOR._replace(**_SLICED),
  'next_items': _FROM_THE_VECTOR._replace(flags=('num_next',)),
  'clue': Traits(passes=2, temperature=0.1),
  'cl4srec': Traits(views=2, augmentations=(EDITS,), temperature=1.0),
  'idicl': Traits(passes=2, temperature=0.1),
  'ccl': _AUGMENTED._replace(has_curriculum=True),
  'coles': Traits(**_SLICED),
  # Two views, each encoded masked and filled.
  'ccl_filled': _ITEMS._replace(
    views=4, fills=True, has_curriculum=True, mask_ratio=0.3, temperature=1.0
  ),
  # Four negatives for the masked behaviour, and for each of the last two.
  'ptum': Traits(views=2, from_the_vector=True, draws=12),
  'msdp': _FROM_THE_VECTOR._replace(
    views=2, mask_ratio=0.3, flags=('max_window', 'msdp_regularizer')
  ),
  # Two dropout passes, the masked sequence, and the filled sequence.
  'ecl': _ITEMS._replace(
    views=4,
    fills=True,
    mask_ratio=0.2,
    temperature=0.05,
    flags=('ecl_contrast', 'ecl_discriminator'),
  ),
  'coserec': Traits(
    views=2,
    augmentations=((*EDITS, 'insert', 'substitute'),),
    sees_similar=True,
    mask_ratio=0.6,
    temperature=1.0,
    flags=('num_similar',),
  ),
  'duorec': Traits(
    views=2, sees_target=True, sees_partners=True, temperature=1.0
  ),
}
# The traits of the user's own objective, MODULE:FUNCTION, are not known: its
# step gets the whole table.
_UNKNOWN = Traits(over_all_items=True)


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
    (),
    'The weights of the --objective losses, in their order [1 each].',
    may_repeat=True,
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
    may_repeat=True,
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

  @property
  def traits(self) -> tuple[Traits, ...]:
    """The properties of the objectives, in their order."""
    return tuple(traits_of(self, name) for name in self.objective)


def traits_of(settings: ObjectiveSettings, objective: str) -> Traits:
  """The properties of an objective, with the values of the flags."""
  traits = _UNKNOWN if ':' in objective else TRAITS[objective]
  views = traits.views or settings.num_slices
  ratio, temperature = traits.mask_ratio, traits.temperature
  (first,) = traits.augmentations
  second = first
  if traits.is_augmented:
    if objective == 'adaptssr' and 'pooled_items' in settings.objective:
      # It can then rank the views of pooled items.
      first = ('slice',)
    first = settings.augmentations or first
    second = settings.second_augmentations or first
  return traits._replace(
    views=views,
    augmentations=(first, *[second] * (views - 1)),
    sees_histories=traits.sees_histories or 'slice' in first + second,
    mask_ratio=ratio and (settings.mask_ratio or ratio),
    temperature=temperature and (settings.temperature or temperature),
  )
