"""The flags of the benchmark, and what is wrong with them."""

import dataclasses
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable

from experiments.flags.binder import SettingsError, flag, unknown
from experiments.flags.pretraining import (
  PretrainSettings,
  with_causal_encoder,
  with_defaults,
)
from experiments.flags.process import ProcessSettings, SpeedSettings
from experiments.flags.shared import EncoderSettings
from experiments.flags.traits import TRAITS

# The catalogues of MovieLens-100k and of TTL, about.
CATALOGUES = (4048, 645_973)
# By what is measured instead of the rest: the flags that it has no use for.
_ALONE = {
  'growth': (
    'gpu',
    'reference',
    'ablation',
    'profile',
    'inference',
    'objectives',
  ),
  'gpu': ('ablation', 'microbatch', 'buckets', 'table_update', 'objectives'),
  'quick': ('reference', 'ablation', 'rounds'),
  'objectives': ('reference', 'ablation', 'profile', 'inference'),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkSettings(EncoderSettings, ProcessSettings, SpeedSettings):
  """The flags of the benchmark."""

  num_items: tuple[str, ...] | None = flag(
    None, 'Catalogue sizes, N or N,N [4048,645973; --quick: 4048].'
  )
  max_length: int | None = flag(150, 'Behaviours seen of a user.', low=1)
  longest: int = flag(
    100,
    'Behaviours of the longest synthetic user; the mean is 0.55 times that.',
    low=10,
  )
  batch_size: int = flag(128, 'Users of a batch, over all devices.', low=1)
  steps: int = flag(12, 'Steps that are timed, after some that are not.', low=3)
  rounds: int | None = flag(
    None,
    'How often configurations that are compared are run, in turn [3; --growth '
    '1].',
    low=1,
  )
  quick: bool = flag(
    False,
    'Measure one configuration only, in this process: less than a minute. With '
    '--growth or --gpu: two values of each flag.',
  )
  inference: bool = flag(False, 'Also time the encoding of users.')
  profile: bool = flag(
    False, 'Also print where the time of a step goes, by the profiler of JAX.'
  )
  growth: bool = flag(
    False,
    'Instead, measure speed and memory at other batches, lengths, widths, '
    'catalogues and devices, one value a process, and draw them beside '
    'growth.json. Given again, it goes on.',
  )
  gpu: bool = flag(
    False,
    'Instead, in bfloat16, choose --microbatch, --buckets and --table_update '
    'by measuring, write them as chosen_N.flags for N items, and take turns '
    'with the reference, which has torch.compile and bfloat16, too.',
  )
  objectives: tuple[str, ...] = flag(
    (),
    'Instead, take turns with the same objectives in plain PyTorch, which '
    '--reference_python runs: all, or some of '
    f'{", ".join(TRAITS)}; at 4048 items unless --num_items says more. Given '
    'again, it goes on. With --quick: time one of them.',
  )
  cpu_time: bool = flag(
    False,
    'Measure CPU time instead of wall-clock time, on a machine that is in use; '
    'needs --cpu_devices=1 and no --reference.',
  )
  timeout: int = flag(
    900,
    'Seconds after which a configuration is given up, and the result says so.',
    low=1,
  )
  ablation: bool = flag(
    False, 'Also time each optimisation switched off in turn.'
  )
  reference: str = flag(
    '',
    'A checkout of the public PyTorch implementation, to be timed in turn with '
    'this one.',
  )
  reference_python: str = flag(
    sys.executable, 'The Python that runs it, which has torch and numpy.'
  )
  workdir: str = flag('runs/benchmark', 'Folder of the results.')
  json: str = flag(
    '',
    'File of the results [benchmark.json, or growth.json, gpu.json, '
    'objectives.json or quick.json, in --workdir].',
  )
  compilation_cache: str = flag(
    'off',
    "--quick: folder of JAX's compiled programs, or auto, see "
    'experiments.pretrain. Without --quick all is compiled once.',
  )

  @property
  def catalogues(self) -> tuple[int, ...]:
    """The numbers of items."""
    one = self.quick or self.objectives
    words = self.num_items or CATALOGUES[: 1 if one else None]
    try:
      sizes = tuple(int(word) for word in words)
    except ValueError:
      sizes = ()
    if not sizes or min(sizes) < 2:
      raise SettingsError(
        f'--num_items must be numbers from 2 up, not {",".join(words)}'
      )
    return sizes

  @property
  def objective_names(self) -> tuple[str, ...]:
    """Which objectives are timed."""
    if self.objectives == ('all',):
      return tuple(TRAITS)
    for name in self.objectives:
      if name not in TRAITS:
        raise SettingsError(f'--objectives: {unknown(name, ["all", *TRAITS])}')
    return self.objectives or ('adaptssr',)

  @property
  def is_resumable(self) -> bool:
    """Whether the same command measures only what is not measured yet."""
    return self.mode in ('growth', 'objectives')

  @property
  def clock(self) -> Callable[[], float]:
    """What tells the seconds of steps."""
    return time.process_time if self.cpu_time else time.perf_counter

  @property
  def mode(self) -> str:
    """The flag that says what is measured instead, if one is given."""
    return next((name for name in _ALONE if getattr(self, name)), '')

  @property
  def json_file(self) -> pathlib.Path:
    """Where the results go."""
    name = self.mode or 'benchmark'
    return pathlib.Path(self.json or pathlib.Path(self.workdir, f'{name}.json'))

  def pretraining(self) -> PretrainSettings:
    """The run of pre-training whose steps are timed.

    It has the first of the objectives, and a curriculum is at its end.
    """
    names = {field.name for field in dataclasses.fields(PretrainSettings)}
    shared = {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
      if field.name in names
    }
    settings = PretrainSettings(
      **shared, objective=self.objective_names[:1], curriculum_steps=1
    )
    return with_defaults(with_causal_encoder(settings))


def check(settings: BenchmarkSettings) -> None:
  """Refuses before anything is timed what would fail in the end."""
  mode, several = settings.mode, len(settings.catalogues) > 1
  names = settings.objective_names
  wrong = [
    f'--{field.name}'
    for field in dataclasses.fields(settings)
    if field.name in _ALONE.get(mode, ())
    and getattr(settings, field.name) != field.default
  ]
  if settings.num_items and several and mode in ('quick', 'growth'):
    wrong.append('--num_items=N,N')
  if mode == 'quick' and len(names) > 1:
    wrong.append('--objectives of several')
  if wrong:
    raise SettingsError(
      f'--{mode} does not go with {wrong[0]}: leave out {wrong[0]}, or --{mode}'
    )
  if settings.json and not settings.json_file.parent.is_dir():
    raise SettingsError(
      f'--json={settings.json}: there is no folder {settings.json_file.parent}'
    )
  if settings.json and settings.json_file.is_dir():
    raise SettingsError(f'--json={settings.json} is a folder, not a file')
  if settings.cpu_time and (settings.cpu_devices != 1 or settings.reference):
    raise SettingsError(
      '--cpu_time counts the time of all cores together: give --cpu_devices=1 '
      'and no --reference, or leave it out'
    )
  if settings.gpu and not settings.quick:
    _check_gpu()
  if settings.reference:
    _check_reference(settings)
  if settings.reference or mode == 'objectives':
    _check_python(settings)


def _check_gpu() -> None:
  # In a process of its own, since JAX takes most of the memory of a GPU.
  code = 'import jax; print(jax.default_backend())'
  command = [sys.executable, '-c', code]
  seen = subprocess.run(command, capture_output=True, text=True)
  if seen.stdout.strip() != 'gpu':
    raise SettingsError(
      '--gpu measures on a GPU, and JAX sees none: install what JAX needs for '
      "it (pip install -e '.[gpu]'), or add --quick to try the command on a CPU"
    )


def _check_reference(settings: BenchmarkSettings) -> None:
  code = pathlib.Path(settings.reference) / 'Code'
  if not (code / 'AdaptSSR').is_dir():
    raise SettingsError(
      f'--reference={settings.reference} is no checkout of the public '
      'implementation: it has no folder Code/AdaptSSR'
    )


def _check_python(settings: BenchmarkSettings) -> None:
  try:
    subprocess.run(
      [settings.reference_python, '-c', 'import numpy, torch'],
      capture_output=True,
      check=True,
    )
  except OSError as error:
    raise SettingsError(
      f'--reference_python={settings.reference_python} cannot be run '
      f'({error.strerror})'
    ) from error
  except subprocess.CalledProcessError as error:
    raise SettingsError(
      f'--reference_python={settings.reference_python} cannot import numpy and '
      'torch: name the Python of an environment that has them'
    ) from error
