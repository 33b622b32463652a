"""Properties of the pre-training objectives, on which flags depend."""

from typing import NamedTuple

EDITS = ('crop', 'mask', 'reorder')


class Traits(NamedTuple):
  """The properties of an objective."""

  views: int = 1  # sequences of each user that a step encodes; 0: --num_slices
  passes: int = 1  # dropout passes of each of them
  is_augmented: bool = False  # whether --augmentations makes its views
  edits: tuple[str, ...] = ()  # else the edits of which each view has one
  is_sliced: bool = False  # whether its views are slices of the whole history
  sees_histories: bool = False  # whether it needs the whole history of a user
  over_all_items: bool = False  # whether it computes a softmax over all items
  has_bias: bool = False  # whether it learns a bias per item
  from_the_vector: bool = False  # whether the user vector predicts items
  sees_target: bool = False  # whether it needs max_length + 1 behaviours
  sees_partners: bool = False  # whether its batches have `partner_items`
  sees_similar: bool = False  # whether its batches have `similar_items`
  has_curriculum: bool = False  # whether augmentations get stronger in a run
  mask_ratio: float = 0.6  # the default of --mask_ratio
  temperature: float = 1.0  # the default of --temperature
  draws: int = 0  # number of negative items drawn for each user
  fills: bool = False  # whether it replaces masked items by draws of the model


_SLICED = Traits(views=0, is_sliced=True, sees_histories=True)
_ITEMS = Traits(over_all_items=True, has_bias=True, mask_ratio=0.3)
_FROM_THE_VECTOR = _ITEMS._replace(from_the_vector=True, sees_histories=True)

TRAITS = {
  'adaptssr': Traits(views=0, passes=2, is_augmented=True),
  'masked_items': _ITEMS,
  'causal_items': _ITEMS._replace(sees_target=True),
  'pooled_items': _FROM_THE_VECTOR._replace(views=0, is_sliced=True),
  'next_items': _FROM_THE_VECTOR,
  'clue': Traits(passes=2, temperature=0.1),
  'cl4srec': Traits(views=2, edits=EDITS),
  'idicl': Traits(passes=2, temperature=0.1),
  'ccl': Traits(views=0, is_augmented=True, has_curriculum=True),
  'coles': _SLICED,
  # Two views, each encoded masked and filled.
  'ccl_filled': _ITEMS._replace(views=4, fills=True, has_curriculum=True),
  # Four negatives for the masked behaviour, and for each of the last two.
  'ptum': Traits(views=2, from_the_vector=True, draws=12),
  'msdp': _FROM_THE_VECTOR._replace(views=2),
  # Two dropout passes, the masked sequence, and the filled sequence.
  'ecl': _ITEMS._replace(views=4, mask_ratio=0.2, temperature=0.05, fills=True),
  'coserec': Traits(
    views=2, edits=(*EDITS, 'insert', 'substitute'), sees_similar=True
  ),
  'duorec': Traits(views=2, sees_target=True, sees_partners=True),
}
# The traits of the user's own objective, MODULE:FUNCTION, are not known: its
# step gets the whole table.
_UNKNOWN = Traits(over_all_items=True)


def traits_of(objective: str) -> Traits:
  """The traits of an objective by its name."""
  return _UNKNOWN if ':' in objective else TRAITS[objective]
