"""The methods that a comparison knows.

A method is a pre-training run, given by a flag file and by the flags that it
changes, or a baseline without a user model. A new row is a new entry of
METHODS; a new flag file is a new entry of `setup.STAGES`.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from experiments.flags.finetuning import SELECT_BY
from experiments.flags.objectives import EDITS as AUGMENTATIONS

# The metric by which methods are compared, by the kind of task.
METRICS = {kind: names[0] for kind, names in SELECT_BY.items()}
LABELS = ('classification', 'conversion')
# The row that the others are compared with by default.
REFERENCE = 'none'
# How an encoder is used: it is trained on the task; or it is frozen, and a
# regression is fitted on its vectors, alone or joined with the bag of items.
FINE_TUNED, FROZEN, FROZEN_WITH_BAG = MODES = (
  'fine_tuned',
  'frozen',
  'frozen_with_bag',
)
FROZEN_MODES = (FROZEN, FROZEN_WITH_BAG)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
  """A row of the table."""

  title: str  # the name in the table
  # The flag of `compare` that names the flag file of pre-training; without one
  # the encoder is random.
  flags: str = ''
  after: str = ''  # the method from whose encoder pre-training starts
  # Flags of pre-training, or of the baseline, that replace those of the file.
  changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  # The methods whose vectors are concatenated, for a method without training.
  concatenated: Sequence[str] = ()
  history: str = 'last'  # what the vectors are of, see `HistorySettings`
  steps_of: str = ''  # the method that sets the number of pre-training steps
  rate_of: str = ''  # the flag whose file sets the learning rate, if another
  baseline: str = ''  # for baselines: the `--method` of `experiments.baselines`
  kinds: Sequence[str] = tuple(METRICS)  # the kinds of task that it can solve
  modes: Sequence[str] = MODES  # the columns in which it is measured


def _after(start: str, title: str, **changes: Any) -> Method:
  """A method that starts from another, with changed flags of AdaptSSR."""
  return Method(title=title, flags='pretrain', after=start, changes=changes)


def _adaptssr(title: str, **changes: Any) -> Method:
  """A variant of AdaptSSR after the warm start."""
  return _after('masked_items', f'AdaptSSR{title}', **changes)


def _one_augmentation(name: str) -> Method:
  changes = {'augmentations': (name,), 'second_augmentations': None}
  return _adaptssr(f', {name} only', **changes)


def _published_method(title: str, name: str, **changes: Any) -> Method:
  """Another published method, trained after the warm start."""
  return _after('masked_items', title, objective=(name,), **changes)


# The modes of baselines that are bags: no bag is joined to another one.
_ALONE = (FINE_TUNED, FROZEN)

METHODS = {
  'none': Method(title='None', modes=(FINE_TUNED,)),
  'random_encoder': Method(title='Random encoder', modes=FROZEN_MODES),
  'bag_of_items': Method(
    title='Bag of items', baseline='bag_of_items', kinds=LABELS, modes=_ALONE
  ),
  # The same bag as is joined to the vectors.
  'bag_of_items_whole': Method(
    title='Bag of items, whole history',
    baseline='bag_of_items',
    changes={'max_length': 0},
    kinds=LABELS,
  ),
  'bag_svd': Method(title='SVD of the bag', baseline='bag_svd', modes=_ALONE),
  'most_popular': Method(
    title='Most popular', baseline='most_popular', kinds=('ranking',)
  ),
  'last_item': Method(
    title='Last item (Markov)', baseline='last_item', kinds=('ranking',)
  ),
  'masked_items': Method(title='Masked items', flags='warm_start'),
  'masked_items_longer': Method(
    title='Masked items, continued',
    flags='warm_start',
    after='masked_items',
    steps_of='adaptssr',
  ),
  'adaptssr_cold': Method(title='AdaptSSR, no warm start', flags='pretrain'),
  'adaptssr': _adaptssr(''),
  'pooled_items': Method(title='Pooled items', flags='first_stage'),
  'pooled_items_longer': Method(
    title='Pooled items, continued',
    flags='first_stage',
    after='pooled_items',
    steps_of='last_stage',
    # The last stage often has a lower learning rate, which helps by itself.
    rate_of='last_stage',
  ),
  'adaptssr_after_pooled': _after(
    'pooled_items', 'AdaptSSR after pooled items'
  ),
  'last_stage': Method(
    title='Pooled items, then AdaptSSR',
    flags='last_stage',
    after='pooled_items',
  ),
  'joint': Method(title='Pooled items and AdaptSSR', flags='joint'),
}
METHODS |= {
  f'adaptssr_{name}': _one_augmentation(name) for name in AUGMENTATIONS
}
# A method whose encoder has another shape comes with its own warm start.
PUBLISHED_METHODS = {
  'ptum': _published_method('PTUM', 'ptum'),
  'clue': _published_method('CLUE', 'clue'),
  'ccl': _published_method(
    'CCL',
    'ccl',
    augmentations=('mask',),
    second_augmentations=('reorder',),
    mask_ratio=0.3,
    reorder_ratio=0.3,
  ),
  'masked_items_of_interests': Method(
    title='Masked items, 4 interests',
    flags='warm_start',
    changes={'num_queries': 4, 'cosine_pooling': True},
  ),
  'idicl': _after('masked_items_of_interests', 'IDICL', objective=('idicl',)),
  'cl4srec': _published_method(
    'CL4SRec', 'cl4srec', crop_ratio=0.6, mask_ratio=0.3, reorder_ratio=0.6
  ),
  'coserec': _published_method(
    'CoSeRec', 'coserec', crop_ratio=0.2, mask_ratio=0.7, reorder_ratio=0.2
  ),
  'duorec': _published_method('DuoRec', 'duorec', window='last'),
  'coles': _published_method('CoLES', 'coles', num_slices=5),
  'ecl': _published_method('ECL', 'ecl', mask_ratio=0.2),
  'msdp': _published_method('MSDP', 'msdp'),
  'next_items': _published_method('Next items', 'next_items'),
  'sasrec': Method(
    title='SASRec (causal items, full softmax)',
    flags='warm_start',
    changes={'objective': ('causal_items',)},
  ),
}
METHODS |= PUBLISHED_METHODS

# The rows by default; the other methods are ablations.
MAIN_ROWS = (
  'none',
  'bag_of_items',
  'most_popular',
  'last_item',
  'masked_items',
  'masked_items_longer',
  'adaptssr_cold',
  'adaptssr',
)


def with_needed(name: str, known: Mapping[str, Method]) -> Iterator[str]:
  """The name of a method, after those of all methods that it depends on."""
  method = known[name]
  for other in (method.after, method.steps_of, *method.concatenated):
    if other:
      yield from with_needed(other, known)
  yield name


def rho_methods(rhos: Sequence[float]) -> dict[str, Method]:
  """AdaptSSR with augmentations that change these shares of a sequence."""
  return {
    f'adaptssr_rho_{rho:g}': _adaptssr(
      f', rho {rho:g}',
      # Crop keeps this share; it is rounded, since 1 - 0.9 is not quite 0.1.
      crop_ratio=round(1 - rho, 6),
      mask_ratio=rho,
      reorder_ratio=rho,
    )
    for rho in rhos
  }


def pair_methods() -> dict[str, Method]:
  """AdaptSSR with one augmentation for each of the two views, all pairs."""
  return {
    pair_name(first, second): _adaptssr(
      f', {first} and {second}',
      augmentations=(first,),
      second_augmentations=(second,),
    )
    if first != second
    else _one_augmentation(first)
    for first, second in pairs()
  }


def pair_name(first: str, second: str) -> str:
  """The name of a pair; the ablation's if both augmentations are the same."""
  return f'adaptssr_{first}' + (f'_{second}' if first != second else '')


def pairs() -> list[tuple[str, str]]:
  """All unordered pairs of augmentations, pairs of one with itself included."""
  return list(itertools.combinations_with_replacement(AUGMENTATIONS, 2))
