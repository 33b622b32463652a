"""Writes a trained encoder as a folder that works without this code base.

  python -m experiments.export --pretrained=runs/latest --output=deployed

The folder holds

  load.py              raw item ids in, vectors out: `Encoder()(histories)`
  encoder.jaxexport    the encoder, as a program for CPU, CUDA GPU and TPU of
                       any number of users and any length up to max_length
  weights.safetensors  its weights, float32, by name
  vocabulary           the raw item ids as JSON, that of item i in line i
  settings.json        the encoder's fields, its data set, the commit, and the
                       versions that wrote it

load.py needs these files, jax, numpy and flatbuffers only. For a fine-tuned
run, the encoder is exported without the head.

JAX promises that the program "can be compiled and executed by a compiler and
JAX runtime system that are up to 6 months newer than the version of JAX used
for exporting", and up to 3 weeks older. After that, export the run again, or
use the other files, which do not expire: see docs/deployment.md.
"""

from experiments.flags.small_commands import ExportSettings
from experiments.run.command import run

if __name__ == '__main__':
  run('experiments.export', ExportSettings)

import json
import os
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export

from adaptssr_jax.checkpoint.encoders import restore_description, restore_model
from adaptssr_jax.checkpoint.items import describe
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.table.lookup import encoder_params
from adaptssr_jax.training.devices import host_device
from experiments.flags.binder import SettingsError
from experiments.run.outputs import check_absent
from experiments.run.process import print_result_line
from experiments.run.workdir import commit

PLATFORMS = ('cpu', 'cuda', 'tpu')
_LOADER = pathlib.Path(__file__).parent / 'embedding' / 'load.py'


def main(settings: ExportSettings) -> pathlib.Path:
  """Writes the folder, and returns it.

  Raises:
    CheckpointError: the run cannot be read.
  """
  for name in ('pretrained', 'output'):
    if not getattr(settings, name):
      raise SettingsError(f'--{name}=DIR is needed')
  check_packages()
  path = pathlib.Path(settings.output).absolute()
  check_absent(path, flag='output')
  encoder, params, vocabulary = restore_model(
    settings.pretrained, device=host_device()
  )
  if settings.dtype:
    encoder = encoder.clone(dtype=settings.dtype)
  flags = restore_description(settings.pretrained).flags
  dataset = flags.get('dataset', 'unknown')
  # Renamed at the end, so that a reader never finds a part of the folder.
  aside = path.with_name(f'{path.name}.{os.getpid()}.part')
  try:
    aside.mkdir(parents=True)
    about = {'history': settings.history, 'dataset': dataset}
    write_encoder(aside, encoder, encoder_params(params), vocabulary, about)
    aside.rename(path)
  except OSError as error:
    raise SettingsError(f'--output={path} was not written: {error}') from error
  finally:
    shutil.rmtree(aside, ignore_errors=True)
  print_result_line(
    f'{settings.output}: an encoder of {len(vocabulary):,} items, vectors of '
    f'{encoder.vector_dim}; load.py encodes users with it'
  )
  return path


def check_packages() -> None:
  """Raises `SettingsError` if a package that an export needs is missing."""
  try:
    import flatbuffers  # noqa: F401
    import safetensors.numpy  # noqa: F401
  except ModuleNotFoundError as error:
    raise SettingsError(
      f"an export needs {error.name}: pip install '.[export]'"
    ) from None


def write_encoder(
  folder: pathlib.Path,
  encoder: UserEncoder,
  params: dict[str, Any],
  vocabulary: Sequence[str],
  about: dict[str, str],
) -> None:
  """Writes the files of an export into a folder.

  Args:
    params: the parameters for `UserEncoder.apply`.
    vocabulary: the raw item ids, that of item i at i - 1.
    about: further entries of `settings.json`.

  Raises:
    OSError: the disk is full.
  """
  import safetensors.numpy

  weights = {
    name: np.asarray(array, np.float32)
    for name, array in flatten_dict(params, sep='.').items()
  }
  try:
    safetensors.numpy.save_file(weights, folder / 'weights.safetensors')
  except safetensors.SafetensorError as error:
    raise OSError(str(error)) from error
  program = folder / 'encoder.jaxexport'
  program.write_bytes(lowered(encoder, weights))
  # safetensors may leave them readable by their owner only.
  shutil.copymode(program, folder / 'weights.safetensors')
  lines = ''.join(f'{json.dumps(item)}\n' for item in vocabulary)
  (folder / 'vocabulary').write_text(lines)
  settings = {
    'encoder': describe(encoder, [], flags={}).encoder,
    'vector_dim': encoder.vector_dim,
    **about,
    'commit': commit(),
    'jax': jax.__version__,
    'jaxlib': jaxlib.__version__,
    'platforms': PLATFORMS,
  }
  text = json.dumps(settings, indent=2) + '\n'
  (folder / 'settings.json').write_text(text)
  shutil.copyfile(_LOADER, folder / _LOADER.name)


def lowered(encoder: UserEncoder, weights: dict[str, np.ndarray]) -> bytes:
  """Exports the encoder as a program by `jax.export`, without its weights.

  Args:
    weights: the parameters of the encoder by name, nested names joined by `.`.

  Returns:
    The serialized function of weights and items int32 [batch, length], for any
    batch and any length in 1..max_length, on all `PLATFORMS`.
  """
  batch, length = export.symbolic_shape(
    'batch, length', constraints=[f'length <= {encoder.max_length}']
  )
  shapes = {
    name: jax.ShapeDtypeStruct(array.shape, array.dtype)
    for name, array in weights.items()
  }
  items = jax.ShapeDtypeStruct((batch, length), jnp.int32)

  @jax.jit
  def encode(weights: dict[str, jax.Array], items: jax.Array) -> jax.Array:
    params = unflatten_dict(weights, sep='.')
    return encoder.apply({'params': params}, items)

  return export.export(encode, platforms=PLATFORMS)(shapes, items).serialize()
