"""The rows of a comparison: where each method's fine-tuning starts.

A method is a pre-training run, given by the flag file it has and by what it
changes there; or it is counted or fitted without any user model. A new row is
a new entry of METHODS.
"""

import dataclasses
import difflib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from experiments.objective_settings import EDITS as AUGMENTATIONS
from experiments.settings import SettingsError
from experiments.tasks import KINDS

# The kinds of task, each with the metric by which methods are compared.
METRICS = {name: kind.select_by[0] for name, kind in KINDS.items()}
LABELS = ('classification', 'conversion')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
  """A row of the table.

  Args:
    title: its name in the table.
    flags: the flag of `compare` that names the flag file of its pre-training;
      without, fine-tuning starts at random.
    after: the method whose pre-trained encoder this pre-training starts from.
    changes: what its pre-training has otherwise than the file says.
    steps_of: the method as many of whose pre-training steps it takes.
    baseline: the one of `baselines` that it is, instead of a user model.
    kinds: the kinds of task that it can do.
  """

  title: str
  flags: Literal['', 'warm_start', 'pretrain'] = ''
  after: str = ''
  changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  steps_of: str = ''
  baseline: str = ''
  kinds: Sequence[str] = tuple(METRICS)


def _adaptssr(title: str, **changes: Any) -> Method:
  """AdaptSSR after the warm start, with one thing changed."""
  return Method(
    title=f'AdaptSSR{title}',
    flags='pretrain',
    after='masked_items',
    changes=changes,
  )


def _one_augmentation(name: str) -> Method:
  changes = {'augmentations': (name,), 'second_augmentations': None}
  return _adaptssr(f', {name} only', **changes)


METHODS = {
  'none': Method(title='None'),
  'bag_of_items': Method(
    title='Bag of items', baseline='bag_of_items', kinds=LABELS
  ),
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
  'adaptssr_batch_mean': _adaptssr(', batch-mean fusion', fusion='batch_mean'),
  'adaptssr_half': _adaptssr(', fusion 0.5', fusion='0.5'),
  'adaptssr_all_pairs': _adaptssr(', all pairs', hard_negatives=False),
} | {f'adaptssr_{name}': _one_augmentation(name) for name in AUGMENTATIONS}

# Those of the table by default; the others are ablations.
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


def choose_methods(names: Sequence[str]) -> dict[str, Method]:
  """The methods of these names.

  Raises:
    SettingsError: there is no such method; names the nearest.
  """
  for name in names:
    if name not in METHODS:
      near = difflib.get_close_matches(name, METHODS, n=1)
      hint = f'; did you mean {near[0]!r}?' if near else '.'
      raise SettingsError(
        f'--methods: no {name!r}{hint} There are: {", ".join(METHODS)}'
      )
  return {name: METHODS[name] for name in names}


def rho_methods(rhos: Sequence[float]) -> dict[str, Method]:
  """AdaptSSR with this share of a sequence changed by every augmentation."""
  return {
    f'adaptssr_rho_{rho:g}': _adaptssr(
      f', rho {rho:g}',
      # What crop keeps; rounded, since 1 - 0.9 is not quite 0.1.
      crop_ratio=round(1 - rho, 6),
      mask_ratio=rho,
      reorder_ratio=rho,
    )
    for rho in rhos
  }


def pair_methods() -> dict[str, Method]:
  """AdaptSSR with one augmentation for each of the two views, all pairs.

  Example:
    >>> list(pair_methods())[:3]
    ['adaptssr_crop', 'adaptssr_crop_mask', 'adaptssr_crop_reorder']
  """
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
  """The method of a pair; twice the same is the ablation of that name."""
  return f'adaptssr_{first}' + (f'_{second}' if first != second else '')


def pairs() -> list[tuple[str, str]]:
  """All pairs of augmentations, each once, twice the same included."""
  return list(itertools.combinations_with_replacement(AUGMENTATIONS, 2))
