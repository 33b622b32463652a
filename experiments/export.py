"""Writes a trained encoder as one folder to deploy, without this code base.

  python -m experiments.export --pretrained=runs/latest --output=deployed

The folder holds

  load.py              raw item ids in, vectors out: `Encoder()(histories)`
  encoder.jaxexport    the encoder, as a program for CPU, CUDA GPU and TPU of
                       any number of users and any length up to max_length
  weights.safetensors  its weights, float32, by name
  vocabulary           the raw item ids as JSON, that of item i in line i
  settings.json        the encoder's fields, its data set, the commit, and the
                       versions that wrote it

and load.py needs nothing but that, jax, numpy and flatbuffers. Of a fine-tuned
run it is the encoder, without the head.

JAX promises that the program "can be compiled and executed by a compiler and
JAX runtime system that are up to 6 months newer than the version of JAX used
for exporting", and up to 3 weeks older. The other files do not age: export
anew from the run, or see docs/deployment.md.
"""

from experiments.flags.small_commands import ExportSettings
from experiments.run.command import run

if __name__ == '__main__':
  # Bad flags, and --help, are answered before what follows is imported.
  run('experiments.export', ExportSettings)

import pathlib

from adaptssr_jax.checkpoint.encoders import restore_description, restore_model
from adaptssr_jax.table.lookup import encoder_params
from adaptssr_jax.training.devices import host_device
from experiments.exporting.folder import (
  check_new,
  check_packages,
  new_folder,
  write_encoder,
)
from experiments.flags.binder import SettingsError
from experiments.run.process import tell_result


def main(settings: ExportSettings) -> pathlib.Path:
  """Writes the folder, and returns it."""
  for name in ('pretrained', 'output'):
    if not getattr(settings, name):
      raise SettingsError(f'--{name}=DIR is needed')
  check_packages()
  path = pathlib.Path(settings.output).absolute()
  check_new(path)
  encoder, params, vocabulary = restore_model(
    settings.pretrained, device=host_device()
  )
  if settings.dtype:
    encoder = encoder.clone(dtype=settings.dtype)
  flags = restore_description(settings.pretrained).flags
  dataset = flags.get('dataset', 'unknown')
  with new_folder(path) as folder:
    write_encoder(
      folder, encoder, encoder_params(params), vocabulary, dataset=dataset
    )
  tell_result(
    f'{settings.output}: an encoder of {len(vocabulary):,} items, vectors of '
    f'{encoder.vector_dim}; load.py encodes users by it'
  )
  return path
