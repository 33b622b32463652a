"""Sections that show user vectors: a map, and the nearest users of a few."""

import collections
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.embedding.neighbours import nearest_users
from experiments.flags.binder import SettingsError
from experiments.flags.small_commands import ReportSettings
from experiments.reporting.charts import as_svg, draw_map, evenly_spaced
from experiments.reporting.page import Chart, Section, Table
from experiments.run.data import open_data, with_data_of
from experiments.run.vector_files import read_vectors

_SHOWN, _NEAREST = 5, 5
_MOST_CLASSES = 8
# More points would not be visible.
_MOST_USERS = 3000
_REST, _UNKNOWN = 'other classes', 'not known'


def classes_of_users(
  settings: ReportSettings, flags: Mapping[str, str]
) -> dict[str, str]:
  """The class of each user of --task, by raw id; empty without a task.

  Raises:
    SettingsError: If the task is not a classification, or no data set is known.
  """
  if not settings.task:
    return {}
  settings = with_data_of(settings, flags)
  if not settings.dataset:
    raise SettingsError(f'--task={settings.task} needs --dataset=NAME')
  data = open_data(settings, settings.task)
  if data.kind != 'classification':
    raise SettingsError(
      f'--task={settings.task} has no classes of users: take one such as '
      'gender, or leave it out'
    )
  return {
    user: data.vocabulary.labels[label]
    for part in data.splits.values()
    for user, label in zip(
      part.user_ids(np.arange(len(part.items))), part.label, strict=True
    )
  }


def users_section(
  name: str,
  path: pathlib.Path,
  classes: Mapping[str, str],
  settings: ReportSettings,
) -> Section:
  """The map of the vectors of a file, and a table of nearest users.

  Raises:
    SettingsError: If there are too few users or features, or vectors are not
      finite.
  """
  users, vectors = read_vectors(path)
  # The first row of a user with rows in several splits is shown.
  _, first = np.unique(users, return_index=True)
  first.sort()
  users, vectors = [users[row] for row in first], vectors[first]
  if len(users) < 3 or vectors.shape[1] < 2:
    raise SettingsError(
      f'{path} has {len(users)} users with {vectors.shape[1]} features: a map '
      'needs at least three users and two features'
    )
  if not np.isfinite(vectors).all():
    raise SettingsError(
      f'{path} has vectors with nan or inf, which no map can show: write it '
      'again, by an encoder whose training did not diverge'
    )
  shown = evenly_spaced(len(users), _MOST_USERS)
  points, note = _MAPS[settings.map](vectors, shown)
  groups = _groups([users[row] for row in shown], classes, settings.task)
  caption = (
    f'{len(shown):,} of {len(users):,} users, vectors of {vectors.shape[1]} '
    f'features. {note}'
  )
  label = f'Map of users by {settings.map}'
  sizes = [f'{name} ({len(rows):,})' for name, rows in groups.items()]
  svg = as_svg(draw_map(points, [*groups.values()]))
  return Section(
    f'User vectors: {name}',
    legend=sizes if classes else [],
    charts=[Chart(svg, label, caption=caption)],
    tables=[_nearest(users, vectors, classes, settings.users)],
  )


def _pca(vectors: np.ndarray, shown: np.ndarray) -> tuple[np.ndarray, str]:
  from sklearn.decomposition import PCA

  if (vectors == vectors[0]).all():
    return np.zeros((len(shown), 2)), 'All vectors are the same.'
  found = PCA(n_components=2, random_state=0).fit(vectors)
  across, up = found.explained_variance_ratio_
  note = f'PCA: across, {across:.0%} of the variance; up, {up:.0%}.'
  return found.transform(vectors[shown]), note


def _umap(vectors: np.ndarray, shown: np.ndarray) -> tuple[np.ndarray, str]:
  try:
    from umap import UMAP
  except ImportError as error:
    raise SettingsError(
      '--map=umap needs UMAP: pip install "adaptssr_jax[umap]", or take '
      '--map=pca'
    ) from error
  points = UMAP(metric='cosine', random_state=0, n_jobs=1).fit_transform(
    vectors[shown]
  )
  return points, 'UMAP by the cosine: only nearness has a meaning.'


_MAPS = {'pca': _pca, 'umap': _umap}


def _groups(
  users: Sequence[str], classes: Mapping[str, str], task: str
) -> dict[str, np.ndarray]:
  """The rows of the users of each class; the smallest classes are merged."""
  if not classes:
    return {'users': np.arange(len(users))}
  own = [classes.get(user, _UNKNOWN) for user in users]
  common = [name for name, _ in collections.Counter(own).most_common()]
  kept = common if len(common) <= _MOST_CLASSES else common[: _MOST_CLASSES - 1]
  named = np.array([name if name in kept else _REST for name in own])
  return {
    f'{task} {name}': np.flatnonzero(named == name)
    for name in sorted(set(named), key=lambda name: (name == _REST, name))
  }


def _nearest(
  users: Sequence[str],
  vectors: np.ndarray,
  classes: Mapping[str, str],
  asked: Sequence[str],
) -> Table:
  unknown = set(asked) - set(users)
  if unknown:
    raise SettingsError(
      f'--users: there is no vector of {sorted(unknown)[0]!r}'
    )
  rows = [users.index(user) for user in asked or users[:_SHOWN]]
  count = min(_NEAREST, len(users) - 1)
  cosines, places = nearest_users(vectors, count=count, rows=rows)
  names = [
    f'{user} ({classes[user]})' if user in classes else user for user in users
  ]
  lines = [
    [names[row], *(f'{names[p]} {c:.3f}' for p, c in zip(*near, strict=True))]
    for row, *near in zip(rows, places, cosines, strict=True)
  ]
  head = ['user', 'nearest', *(f'{n}.' for n in range(2, count + 1))]
  return Table('Nearest users by the cosine', head, lines)
