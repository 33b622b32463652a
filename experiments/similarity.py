"""Compares a user with its own views and with other users, per checkpoint.

  python -m experiments.similarity --checkpoints=runs/a,runs/b --names=A,B

It measures the cosine of the vector of a user's original behaviours, under one
dropout mask, with the vector of

  dropout              the same behaviours under another dropout mask
  crop, mask, reorder  augmented behaviours under another dropout mask
  other                the original behaviours of another user

The results are `similarity.json` (summaries and histograms), `similarity.npz`
(the value of every user) and `similarity.png`, in --workdir. All checkpoints
whose encoders read equally many behaviours get the same random draws.
"""

from experiments.flags.small_commands import SimilaritySettings
from experiments.run.command import run

if __name__ == '__main__':
  run('experiments.similarity', SimilaritySettings)

import functools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from adaptssr_jax.augment import Augmentation
from adaptssr_jax.checkpoint.encoders import restore_description
from adaptssr_jax.data import UserArrays
from adaptssr_jax.objectives.users import Encoding
from adaptssr_jax.objectives.views import encode_views, no_augmentation
from adaptssr_jax.ops.reductions import gather
from adaptssr_jax.ops.similarity import exact_dot, unit_length
from adaptssr_jax.training.devices import AXIS, replicate
from adaptssr_jax.training.step import pmap_step
from experiments.flags.binder import SettingsError
from experiments.flags.shared import EncoderSettings
from experiments.pretraining.context import make_augmentations
from experiments.run import loop
from experiments.run.batches import outputs_in_order
from experiments.run.data import open_data
from experiments.run.encoder import make_encoder, open_source
from experiments.run.pictures import draw_similarities, save
from experiments.run.process import print_line, print_result_line
from experiments.run.steps import sequences_of
from experiments.run.workdir import (
  SIMILARITIES,
  atomic_savez,
  atomic_write,
  opened_workdir,
)

_QUANTILES = (5, 25, 50, 75, 95)
_EDGES = np.linspace(-1, 1, 101).round(2)


def main(settings: SimilaritySettings) -> dict[str, Any]:
  """Measures, and returns the content of `similarity.json`."""
  loop.check_devices(settings)
  names = names_of(settings)
  for source in settings.checkpoints:
    restore_description(source)
  with opened_workdir(settings) as folder:
    return measure_in(folder, settings, names)


def measure_in(
  folder: pathlib.Path, settings: SimilaritySettings, names: Sequence[str]
) -> dict[str, Any]:
  """Measures the named checkpoints, and writes the results into the folder."""
  data = open_data(settings, task='pretrain')
  users = data.splits[settings.split]
  if len(users.items) < 2:
    raise SettingsError(
      f'--split={settings.split}: {data.name} has {len(users.items)} such '
      'users, but a user is compared with another: take another split'
    )

  found = {
    name: measure(settings, source, users, data.vocabulary.items)
    for name, source in zip(names, settings.checkpoints, strict=True)
  }
  result = {
    'dataset': data.name,
    'users': len(users.items),
    # Those on which the numbers depend.
    'flags': settings.flag_values(without=settings.mutable_names()),
    'edges': _EDGES.tolist(),
    'methods': {
      name: {kind: summarize(values) for kind, values in kinds.items()}
      for name, kinds in found.items()
    },
  }
  save_values(folder / 'similarity.npz', found, users)
  atomic_write(folder / SIMILARITIES, json.dumps(result, indent=2) + '\n')
  print_table(result)
  figure = draw_similarities(result['methods'], result['edges'])
  save(figure, folder / 'similarity', ['png'])
  print_result_line(f'similarities: {folder}')
  return result


def names_of(settings: SimilaritySettings) -> tuple[str, ...]:
  """The names of the checkpoints, which must differ."""
  sources = settings.checkpoints
  if not sources:
    raise SettingsError('--checkpoints=DIR[,DIR] is needed: workdirs of runs')
  names = settings.names or default_names(sources)
  if len(names) != len(sources):
    raise SettingsError(
      f'--names has {len(names)}, --checkpoints has {len(sources)}: give one '
      'name for each, in the same order'
    )
  if len(set(names)) < len(names):
    raise SettingsError(
      f'--names={",".join(names)}: two checkpoints have the same name; give '
      'each one of its own'
    )
  return names


def default_names(sources: Sequence[str]) -> tuple[str, ...]:
  """The last part of each path, or the last two parts if names would repeat.

  Example:
    >>> default_names(['runs/a', 'runs/b'])
    ('a', 'b')
    >>> default_names(['runs/a/seed_0', 'runs/b/seed_0'])
    ('a/seed_0', 'b/seed_0')
  """
  names = tuple(pathlib.Path(source).name for source in sources)
  if len(set(names)) < len(names):
    paths = map(pathlib.Path, sources)
    names = tuple(f'{path.parent.name}/{path.name}' for path in paths)
  return names


def measure(
  settings: SimilaritySettings,
  source: str,
  users: UserArrays,
  items: list[str],
) -> dict[str, np.ndarray]:
  """The similarities of all users under one checkpoint, by kind, [users]."""
  init_key, user_key, other_key = jax.random.split(
    jax.random.key(settings.seed), 3
  )
  encoder, params = make_encoder(
    EncoderSettings(dropout_rate=settings.dropout_rate),
    items,
    init_key,
    source=open_source(source),
  )
  augmentations = make_augmentations(settings, encoder.mask_id)
  sequences = sequences_of(settings, [users], encoder.max_length)
  step = pmap_step(
    functools.partial(
      similarity_step,
      encoding=Encoding(encoder, sequences.buckets),
      augmentations=tuple(augmentations.values()),
    ),
    num_replicated_args=1,
  )
  params, user_key = replicate((params, user_key))
  outputs = outputs_in_order(
    lambda batch: step(params, batch, user_key),
    users,
    batch_size=settings.batch_size,
    length=sequences.length,
  )
  found = zip(*(both for _, both in outputs), strict=True)
  vectors, cosines = map(np.concatenate, found)
  columns = [*cosines.T, with_other_users(vectors, other_key)]
  kinds = ('dropout', *augmentations, 'other')
  # Rounding can make a cosine larger than 1, the edge of the last bin.
  return {
    kind: np.clip(column, -1, 1)
    for kind, column in zip(kinds, columns, strict=True)
  }


def similarity_step(
  params: dict[str, Any],
  batch: dict[str, jax.Array],
  key: jax.Array,
  *,
  encoding: Encoding,
  augmentations: tuple[Augmentation, ...],
) -> tuple[jax.Array, jax.Array]:
  """The vectors of the users of all devices, and cosines with their views.

  Returns:
    Vectors of the original behaviours, of length 1, [users, dim]; and their
    cosines, [users, 1 + augmentations], with a second dropout pass and with
    each augmented view.
  """
  views = encode_views(
    params,
    batch,
    key,
    encoding=encoding,
    augmentations=(no_augmentation, no_augmentation, *augmentations),
    passes=1,
  )
  vectors = unit_length(views.users[:, 0])
  cosines = exact_dot('ud,vud->uv', vectors[0], vectors[1:])
  return gather(vectors[0], AXIS), gather(cosines, AXIS)


def with_other_users(vectors: np.ndarray, key: jax.Array) -> np.ndarray:
  """The cosine of each user with another one, drawn at random, [users].

  Users form a ring in random order, and each is compared with the one before
  it, so that every user is the other one exactly once.

  Args:
    vectors: [users, dim] of length 1, of two users or more.
  """
  order = np.asarray(jax.random.permutation(key, len(vectors)))
  partner = np.empty_like(order)
  partner[order] = np.roll(order, 1)
  return np.einsum('nd,nd->n', vectors, vectors[partner])


def summarize(values: np.ndarray) -> dict[str, Any]:
  """Count, mean, standard deviation, quantiles and histogram of values."""
  values = values.astype(np.float64)
  quantiles = np.percentile(values, _QUANTILES)
  return {
    'count': len(values),
    'mean': values.mean(),
    'std': values.std(),
    'quantiles': {
      str(share): float(value)
      for share, value in zip(_QUANTILES, quantiles, strict=True)
    },
    'histogram': np.histogram(values, _EDGES)[0].tolist(),
  }


def save_values(
  path: pathlib.Path,
  found: dict[str, dict[str, np.ndarray]],
  users: UserArrays,
) -> None:
  """Writes `method` [methods], `user_id` [users], and cosines by kind.

  Each kind is an array [methods, users].
  """
  methods = list(found)
  columns = {
    kind: np.stack([found[method][kind] for method in methods])
    for kind in found[methods[0]]
  }
  rows = np.arange(len(users.items))
  atomic_savez(
    path,
    method=np.array(methods),
    user_id=np.array(users.user_ids(rows)),
    **columns,
  )


def print_table(result: dict[str, Any]) -> None:
  """Prints a line per method and kind."""
  width = max(map(len, ('method', *result['methods'])))
  print_line(
    f'{"method":{width}}  cosine with    mean    std     5%    50%    95%'
  )
  for name, kinds in result['methods'].items():
    for kind, summary in kinds.items():
      numbers = [summary['mean'], summary['std']]
      numbers += [summary['quantiles'][share] for share in ('5', '50', '95')]
      cells = ''.join(f'{number:7.3f}' for number in numbers)
      print_line(f'{name:{width}}  {kind:11}{cells}')
