"""The flags of the benchmark, and their checks."""

import dataclasses
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable

from experiments.flags.binder import SettingsError, flag, unknown
from experiments.flags.objectives import TRAITS
from experiments.flags.pretraining import PretrainSettings, with_defaults
from experiments.flags.process import ProcessSettings, SpeedSettings
from experiments.flags.shared import EncoderSettings

# Numbers of items: about those of MovieLens-100k and of TTL.
CATALOGUES = (4048, 645_973)
# Flags that choose another measurement: the flags that it cannot use.
_UNUSED = {
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
    None, 'Catalogue sizes, N or N,N [4048,645973; --quick, --growth: 4048].'
  )
  max_length: int | None = flag(
    150, 'Maximum number of behaviours of a user that are encoded.', low=1
  )
  longest: int = flag(
    100,
    'Behaviours of the longest synthetic user; the mean is 0.55 times that.',
    low=10,
  )
  batch_size: int = flag(128, 'Users in a batch, over all devices.', low=1)
  steps: int = flag(12, 'Steps that are timed, after some warm-up.', low=3)
  rounds: int | None = flag(
    None,
    'How often each of the compared configurations is run, in turn [3; '
    '--growth: 1].',
    low=1,
  )
  quick: bool = flag(
    False,
    'Measure one configuration only, in this process, which takes less than a '
    'minute. With --growth or --gpu: try two values of each flag.',
  )
  inference: bool = flag(False, 'Also time the encoding of users.')
  profile: bool = flag(
    False,
    "Also print the time of each part of a step, measured by JAX's profiler.",
  )
  growth: bool = flag(
    False,
    'Instead, measure speed and memory for other batch sizes, lengths, widths, '
    'catalogues and numbers of devices, each in a process of its own, and draw '
    'them next to growth.json. Given again, the command resumes.',
  )
  gpu: bool = flag(
    False,
    'Instead, in bfloat16, choose --microbatch, --buckets and --table_update '
    'by measuring, write them as chosen_N.flags for N items, and compare with '
    'the reference, which also uses torch.compile and bfloat16.',
  )
  objectives: tuple[str, ...] = flag(
    (),
    'Instead, compare with the same objectives in plain PyTorch, which '
    '--reference_python runs: all, or some of '
    f'{", ".join(TRAITS)}; at 4048 items unless --num_items is given. Given '
    'again, the command resumes. With --quick: time one of them.',
  )
  cpu_time: bool = flag(
    False,
    'Measure CPU time instead of wall-clock time, for a machine that is in '
    'use; needs --cpu_devices=1 and no --reference.',
  )
  timeout: int = flag(
    900,
    'Seconds after which a configuration is stopped and reported as failed.',
    low=1,
  )
  ablation: bool = flag(
    False, 'Also time the defaults with each optimisation switched off.'
  )
  reference: str = flag(
    '',
    'A checkout of the public PyTorch implementation, to compare with.',
  )
  reference_python: str = flag(
    sys.executable, 'The Python that runs PyTorch code; it has torch and numpy.'
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
    'experiments.pretrain. Without --quick each program is compiled once.',
  )

  @property
  def catalogues(self) -> tuple[int, ...]:
    """The numbers of items.

    Raises:
      SettingsError: If --num_items has anything but numbers of 2 or more.
    """
    one = self.quick or self.growth or self.objectives
    words = self.num_items or CATALOGUES[: 1 if one else None]
    try:
      sizes = tuple(int(word) for word in words)
    except ValueError:
      sizes = ()
    if not sizes or min(sizes) < 2:
      raise SettingsError(
        f'--num_items must be numbers of 2 or more, not {",".join(words)}'
      )
    return sizes

  @property
  def objective_names(self) -> tuple[str, ...]:
    """The objectives that are timed.

    Raises:
      SettingsError: If there is no objective of that name.
    """
    if self.objectives == ('all',):
      return tuple(TRAITS)
    for name in self.objectives:
      if name not in TRAITS:
        raise SettingsError(f'--objectives: {unknown(name, ["all", *TRAITS])}')
    return self.objectives or ('adaptssr',)

  @property
  def is_resumable(self) -> bool:
    """Whether the same command, given again, measures only what is missing."""
    return self.mode in ('growth', 'objectives')

  @property
  def clock(self) -> Callable[[], float]:
    """The function that returns the time in seconds."""
    return time.process_time if self.cpu_time else time.perf_counter

  @property
  def mode(self) -> str:
    """The flag that chooses another measurement, or an empty string."""
    return next((name for name in _UNUSED if getattr(self, name)), '')

  @property
  def json_file(self) -> pathlib.Path:
    """The file of the results."""
    name = self.mode or 'benchmark'
    return pathlib.Path(self.json or pathlib.Path(self.workdir, f'{name}.json'))

  def without_effect(self) -> dict[str, str]:
    """The flags that the chosen measurement cannot use."""
    unused = _UNUSED.get(self.mode, ())
    return dict.fromkeys(unused, f'does not go with --{self.mode}')

  def pretraining(self) -> PretrainSettings:
    """The settings of the pre-training run whose steps are timed.

    They have the first of the objectives, at the end of its curriculum.
    """
    names = {field.name for field in dataclasses.fields(PretrainSettings)}
    shared = {
      name: value for name, value in vars(self).items() if name in names
    }
    settings = PretrainSettings(
      **shared, objective=self.objective_names[:1], curriculum_steps=1
    )
    return with_defaults(settings)


def check(settings: BenchmarkSettings) -> None:
  """Raises `SettingsError` for flags with which the benchmark would fail."""
  mode, sizes = settings.mode, settings.catalogues
  names = settings.objective_names
  if mode in ('quick', 'growth') and len(sizes) > 1:
    raise SettingsError(
      f'--{mode} measures a single catalogue: give --num_items=N, or leave out '
      f'--{mode}'
    )
  if mode == 'quick' and len(names) > 1:
    raise SettingsError(
      '--quick measures a single objective: give --objectives=NAME, or leave '
      'out --quick'
    )
  if settings.json and not settings.json_file.parent.is_dir():
    raise SettingsError(
      f'--json={settings.json}: there is no folder {settings.json_file.parent}'
    )
  if settings.json and settings.json_file.is_dir():
    raise SettingsError(f'--json={settings.json} is a folder, not a file')
  if settings.cpu_time and (settings.cpu_devices != 1 or settings.reference):
    raise SettingsError(
      '--cpu_time sums the time of all cores: give --cpu_devices=1 and no '
      '--reference, or leave it out'
    )
  if settings.gpu and not settings.quick:
    _check_gpu()
  if settings.reference:
    _check_reference(settings)
  if settings.reference or mode == 'objectives':
    _check_python(settings)


def _check_gpu() -> None:
  # In a process of its own, since JAX reserves most of the memory of a GPU.
  code = 'import jax; print(jax.default_backend())'
  command = [sys.executable, '-c', code]
  seen = subprocess.run(command, capture_output=True, text=True)
  if seen.stdout.strip() != 'gpu':
    raise SettingsError(
      '--gpu measures on a GPU, and JAX sees none: install JAX for GPUs '
      "(pip install -e '.[gpu]'), or add --quick to try the command on a CPU"
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
