"""The rows of a comparison: methods, and those that its flags define."""

import collections
import dataclasses
import zlib
from collections.abc import Mapping, Sequence

from experiments.comparison.methods import (
  FROZEN_MODES,
  METHODS,
  REFERENCE,
  Method,
  pair_methods,
  rho_methods,
)
from experiments.comparison.options import CompareSettings
from experiments.flags.binder import SettingsError, given_values, unknown
from experiments.flags.pretraining import PretrainSettings
from experiments.flags.process import DistributedSettings
from experiments.flags.shared import DataSettings, PlanSettings

# Flags of pre-training that a comparison sets.
_SET_BY_COMPARISON = {
  *('workdir', 'seed', 'init_from', 'split', 'select_by'),
  *(field.name for field in dataclasses.fields(DataSettings)),
  *(field.name for field in dataclasses.fields(DistributedSettings)),
  *PlanSettings.__annotations__,
}


def choose_rows(
  settings: CompareSettings, rhos: Sequence[float]
) -> dict[str, Method]:
  """The rows of all tables; those of --methods come first."""
  chosen = choose_methods(settings.methods)
  chosen |= variant_methods(settings.variant)
  chosen |= rho_methods(rhos)
  if settings.augmentation_pairs:
    chosen |= pair_methods()
  known = METHODS | chosen
  whole = whole_history_methods(settings.whole_history, known)
  chosen |= whole
  # Their vectors may be concatenated, too.
  seeds = settings.pretrain_seeds or len(settings.seeds)
  chosen |= concatenated_methods(
    settings.concatenated, known | whole, seeds=seeds
  )
  reference = settings.reference
  # The default reference need not be a row.
  if reference not in chosen and reference != REFERENCE:
    raise SettingsError(
      f'--reference={reference} is not among the rows: add it to --methods, or '
      f'take one of {", ".join(chosen)}'
    )
  return chosen


def choose_methods(names: Sequence[str]) -> dict[str, Method]:
  """The methods of these names."""
  for name in names:
    if name not in METHODS:
      raise SettingsError(f'--methods: {unknown(name, METHODS)}')
  return {name: METHODS[name] for name in names}


def variant_methods(variants: Sequence[str]) -> dict[str, Method]:
  """Methods with some flags of their pre-training changed.

  Args:
    variants: each is the name of a method and flags, separated by blanks.

  Example:
    >>> list(variant_methods(['pooled_items --embed_dim=256 --num_epochs=6']))
    ['pooled_items+embed_dim=256+num_epochs=6']
  """
  found = {}
  for variant in variants:
    name, *words = variant.split() or ['']
    try:
      method = choose_methods([name])[name]
      changes = given_values(PretrainSettings, words)
      refused = changes.keys() & _SET_BY_COMPARISON
      if not method.flags or refused or not changes:
        raise SettingsError(
          f'{name} is not pre-trained'
          if not method.flags
          else f'leave out --{min(refused)}, which the comparison sets'
          if refused
          else 'give the flags that it changes'
        )
    except SettingsError as error:
      raise SettingsError(f'--variant={variant}: {error}') from error
    texts = PretrainSettings(**changes).flag_values()
    named = [f'{flag}={texts[flag]}' for flag in sorted(changes)]
    if 'num_epochs' in changes:
      # A number of steps, of the file or another method, would prevail.
      changes.setdefault('num_steps', 0)
    # The key is the name of a folder, and an item of comma-separated lists.
    key = '+'.join([name, *named]).replace('/', '_').replace(',', '-')
    found[key] = dataclasses.replace(
      method,
      title=', '.join([method.title, *named]).replace('=', ' '),
      changes=method.changes | changes,
    )
  return found


def whole_history_methods(
  names: Sequence[str], known: Mapping[str, Method]
) -> dict[str, Method]:
  """Rows with the vectors of each of these methods, of the whole history."""
  _check_trained('--whole_history', names, known)
  return {
    f'{name}_whole': Method(
      title=f'{known[name].title}, whole history',
      concatenated=(name,),
      history='whole',
      modes=FROZEN_MODES,
    )
    for name in names
  }


def concatenated_methods(
  rows: Sequence[str], known: Mapping[str, Method], *, seeds: int
) -> dict[str, Method]:
  """Methods whose vectors are those of several others, concatenated.

  A method that is named n times stands for n of the `seeds` of pre-training.
  """
  found = {}
  for row in rows:
    names, text = tuple(row.split()), f'--concatenated={row}'
    _check_trained(text, names, known)
    if len(names) < 2:
      raise SettingsError(f'{text}: give several methods, or one several times')
    counts = collections.Counter(names)
    most = max(counts.values())
    if most > seeds:
      raise SettingsError(
        f'{text}: a method that is named {most} times needs as many seeds of '
        f'pre-training, not {seeds}: give more --seeds, or a larger '
        '--pretrain_seeds'
      )
    histories = {known[name].history for name in names}
    if len(histories) > 1:
      raise SettingsError(
        f'{text}: give the vectors of the whole history of all or of none'
      )
    key = '_and_'.join(
      name + (f'_x{count}' if count > 1 else '')
      for name, count in counts.items()
    )
    if len(key) > 200:  # The key is the name of a folder.
      key = f'{key[:190]}_{zlib.crc32(key.encode()):08x}'
    found[key] = Method(
      title=', concatenated with '.join(
        known[name].title + (f', {count} seeds' if count > 1 else '')
        for name, count in counts.items()
      ),
      concatenated=[
        run for name in names for run in known[name].concatenated or (name,)
      ],
      history=histories.pop(),
      modes=FROZEN_MODES,
    )
  return found


def _check_trained(
  flag_text: str, names: Sequence[str], known: Mapping[str, Method]
) -> None:
  """Refuses names of methods that are unknown or not pre-trained."""
  for name in names:
    if name not in known:
      raise SettingsError(f'{flag_text}: {unknown(name, known)}')
    if not (known[name].flags or known[name].concatenated):
      raise SettingsError(f'{flag_text}: {name} is not pre-trained')
