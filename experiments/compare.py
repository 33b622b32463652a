"""Compares pre-training methods on all tasks: the table of the paper.

  python -m experiments.compare --flagfile=FILE

with a FILE like experiments/configs/quickstart_compare.flags.

Every run is made once and found again, so a comparison that was killed goes on
with the same command, and one that is done can be given more methods.
"""

import collections
import contextlib
import dataclasses
import datetime
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import flags

from experiments import loop
from experiments.comparison import methods
from experiments.comparison.grid import Cell, Grid, Pretraining, plan
from experiments.comparison.report import write_report
from experiments.comparison.runs import make
from experiments.compilation import forget_compiled
from experiments.datasets import open_data
from experiments.finetune import open_task
from experiments.finetune_settings import FinetuneSettings, with_defaults
from experiments.objective_settings import parse_fusion
from experiments.pretrain import PretrainSettings
from experiments.process import ProcessSettings
from experiments.settings import (
  Settings,
  SettingsError,
  flag,
  from_flagfile,
  run,
)
from experiments.shared_settings import DataSettings
from experiments.speed import check_table_update
from experiments.workdir import opened_workdir

_OBJECTIVES = {'warm_start': 'masked_items', 'pretrain': 'adaptssr'}
# The files are those of the commands that make a single run.
_REPLACED = (
  ' Its --workdir, data, --seed, --task, --split_seed, --train_users, '
  '--compilation_cache, --cpu_devices and where it starts from are those of '
  'the comparison.'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareSettings(DataSettings, ProcessSettings):
  """The flags of a comparison."""

  workdir: str = flag(
    'runs/compare',
    'Folder of all runs and of the results; runs in it are used again.',
    same_run=False,
  )
  tasks: tuple[str, ...] = flag(('gender',), 'The tasks, columns of the table.')
  methods: tuple[str, ...] = flag(
    methods.MAIN_ROWS,
    f'The rows of the table, of: {", ".join(methods.METHODS)}.',
  )
  seeds: tuple[str, ...] = flag(('0',), 'Seeds of fine-tuning.')
  splits: tuple[str, ...] = flag(
    ('0',), 'Seeds by which the labelled rows are split; 0: as stored.'
  )
  crossed: bool = flag(
    True,
    'Every seed in every split; else the first seed in the first split, the '
    'second in the second, and so on.',
  )
  train_shares: tuple[str, ...] = flag(
    ('1',), 'Shares of the training labels to fine-tune on, a table each.'
  )
  pretrain_seeds: int = flag(
    0,
    'How many of --seeds are also pre-trained with; fine-tuning goes round '
    'them. 0: all.',
    low=0,
  )
  warm_start: str = flag(
    '', 'Flag file of pre-training on masked items.' + _REPLACED
  )
  pretrain: str = flag('', 'Flag file of pre-training by AdaptSSR.' + _REPLACED)
  classification: str = flag(
    '', 'Flag file of fine-tuning on classes.' + _REPLACED
  )
  conversion: str = flag(
    '', 'Flag file of fine-tuning on conversions.' + _REPLACED
  )
  ranking: str = flag('', 'Flag file of fine-tuning on rankings.' + _REPLACED)
  rhos: tuple[str, ...] = flag(
    (),
    'Also AdaptSSR with these shares of a sequence changed by augmentation.',
  )
  augmentation_pairs: bool = flag(
    False, 'Also AdaptSSR with one augmentation a view, all pairs.'
  )

  def names_free_to_change(self) -> set[str]:
    """All but the data: each run of the grid keeps watch over its own flags."""
    names = {field.name for field in dataclasses.fields(self)}
    data = {field.name for field in dataclasses.fields(DataSettings)}
    return super().names_free_to_change() | (names - data)


def main(settings: CompareSettings) -> dict[str, Any]:
  """Makes all runs that are missing, and returns what `results.json` says."""
  grid = read_grid(settings)
  with opened_workdir(settings):
    make_all(grid, plan(grid))
    return write_report(settings, grid)


def read_grid(settings: CompareSettings) -> Grid:
  """What the flags say is compared.

  Raises:
    SettingsError: a flag has a value that it cannot have.
  """
  seeds = numbers_of('seeds', settings.seeds, int, high=2**32 - 1)
  chosen = methods.choose_methods(settings.methods)
  rhos = numbers_of('rhos', settings.rhos, float, high=0.99, above=0.0)
  chosen |= methods.rho_methods(rhos)
  if settings.augmentation_pairs:
    chosen |= methods.pair_methods()
  if not settings.tasks:
    raise SettingsError('--tasks needs at least one task')
  tasks = {task: open_data(settings, task) for task in settings.tasks}
  splits = numbers_of('splits', settings.splits, int)
  _check_crossing(settings, splits, seeds)
  place = {
    field.name: getattr(settings, field.name)
    for field in dataclasses.fields(DataSettings)
  }
  finetuning = {}
  for task, users in tasks.items():
    # A pre-training "task" has no such flag; what follows refuses it.
    kind = users.kind if users.kind in methods.METRICS else 'classification'
    finetuning[kind] = _read_flagfile(FinetuneSettings, settings, kind)
    tuned = dataclasses.replace(finetuning[kind], task=task, **place)
    _check_tuning(settings, tuned, kind)
    for split in splits:
      # Refuses before hours of training what could not be measured after them.
      open_task(dataclasses.replace(tuned, split_seed=split))
  pretraining = _read_pretraining(settings, chosen.values())
  return Grid(
    folder=pathlib.Path(settings.workdir),
    data=place,
    methods=chosen,
    tasks=tasks,
    shares=numbers_of(
      'train_shares', settings.train_shares, float, above=0.0, high=1.0
    ),
    splits=splits,
    seeds=seeds,
    crossed=settings.crossed,
    pretrain_seeds=seeds[: settings.pretrain_seeds or len(seeds)],
    pretraining=pretraining,
    pretrain_data=open_data(settings, 'pretrain').name if pretraining else '',
    finetuning=finetuning,
  )


def _check_crossing(
  settings: CompareSettings, splits: Sequence[int], seeds: Sequence[int]
) -> None:
  """Refuses a mean over runs in which some splits count more than others."""
  few, many = sorted((len(splits), len(seeds)))
  if not settings.crossed and many % few:
    raise SettingsError(
      f'--crossed=false with {len(seeds)} --seeds and {len(splits)} --splits '
      'uses some more often than others: give as many of both, or a multiple'
    )


def _check_tuning(
  settings: CompareSettings, tuned: FinetuneSettings, kind: str
) -> None:
  """Refuses now what fine-tuning would refuse after hours of pre-training."""
  path = f'--{kind}={getattr(settings, kind)}'
  if tuned.kind not in (None, kind):
    raise SettingsError(
      f'{path}: leave out --kind={tuned.kind}; methods are compared by the '
      f'kind that the data set says, which is {kind} for {tuned.task}'
    )
  with _naming(path):
    loop.check_devices(with_defaults(tuned))
    check_table_update(tuned)


def numbers_of(
  name: str,
  words: Sequence[str],
  kind: type,
  *,
  above: float = -1.0,
  high: float | None = None,
) -> tuple[Any, ...]:
  """The numbers that a list flag holds, each once.

  Raises:
    SettingsError: a word is no such number; names the flag.
  """
  numbers = []
  for word in words:
    try:
      number = kind(word)
    except ValueError:
      number = None
    if number is None or not above < number or (high and number > high):
      what = 'whole numbers' if kind is int else 'numbers'
      bounds = 'from 0' if above < 0 else f'above {above:g}'
      raise SettingsError(
        f'--{name} must be {what} {bounds}'
        f'{f" to {high:g}" if high else ""}, not {word!r}'
      )
    numbers.append(number)
  if not numbers and name != 'rhos':
    raise SettingsError(f'--{name} needs at least one number')
  return tuple(dict.fromkeys(numbers))


def _read_pretraining(
  settings: CompareSettings, chosen: Sequence[methods.Method]
) -> dict[str, PretrainSettings]:
  """The flags of pre-training, as far as the methods need any."""
  needed = {method.flags for method in chosen} - {''}
  if any(method.after for method in chosen):
    needed.add('warm_start')
  if any(method.steps_of for method in chosen):
    needed.add('pretrain')
  found = {}
  for name, objective in _OBJECTIVES.items():
    if name not in needed and not getattr(settings, name):
      continue
    if not getattr(settings, name):
      raise SettingsError(
        f'--{name}=FLAGFILE is needed by the --methods: it says how they are '
        'pre-trained'
      )
    found[name] = _read_flagfile(PretrainSettings, settings, name)
    with _naming(f'--{name}={getattr(settings, name)}'):
      loop.check_devices(found[name])
      check_table_update(found[name])
      parse_fusion(found[name].fusion)
    if found[name].objective != objective:
      raise SettingsError(
        f'--{name}={getattr(settings, name)} must have '
        f'--objective={objective}, not {found[name].objective}'
      )
  return found


def _read_flagfile(
  settings_type: type[Settings], settings: CompareSettings, name: str
) -> Any:
  path = getattr(settings, name)
  if not path:
    return settings_type()
  with _naming(f'--{name}={path}'):
    return from_flagfile(settings_type, path)


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
  """An error of a flag file names the file."""
  try:
    yield
  except (flags.Error, SettingsError) as error:
    raise SettingsError(f'{path}: {error}') from error


def make_all(grid: Grid, runs: Sequence[Pretraining | Cell]) -> None:
  """Makes the runs in order, and tells after each how long the rest takes."""
  seconds = collections.defaultdict(list)
  for place, one in enumerate(runs):
    record, is_new = make(grid, one)
    if not record['resumed']:
      seconds[one.alike].append(record['seconds'])
    if is_new:
      left = round(time_left(seconds, runs[place + 1 :]))
      print(
        f'[{place + 1}/{len(runs)}] {one.name}: {record["seconds"]:.0f} s'
        f'{" since it was resumed" if record["resumed"] else ""}; '
        f'about {datetime.timedelta(seconds=left)} left',
        flush=True,
      )
      forget_compiled()


def time_left(
  seconds: Mapping[str, Sequence[float]], runs: Sequence[Pretraining | Cell]
) -> float:
  """The seconds that runs will take: as long as those like them, on average.

  A run that is like none before takes as long as the average run. What a
  resumed run took before is not known, so it counts as none.
  """
  means = {alike: sum(all_) / len(all_) for alike, all_ in seconds.items()}
  average = sum(means.values()) / max(len(means), 1)
  return sum(means.get(one.alike, average) for one in runs)


if __name__ == '__main__':
  run(main, CompareSettings)
