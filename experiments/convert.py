"""Converts a model of the public PyTorch code to a run of this one, and back.

  python -m experiments.convert --input=model.pt --workdir=runs/converted
  python -m experiments.convert --input=runs/latest --output=model.pt

Models that were pre-trained by AdaptSSR or masked items are converted, and
fine-tuned models with their heads, but not the state of an optimizer. See
docs/interoperability.md.
"""

from experiments.flags.small_commands import ConvertSettings
from experiments.run.command import run

if __name__ == '__main__':
  run('experiments.convert', ConvertSettings)

import importlib
import pathlib
from typing import Any

import numpy as np

from adaptssr_jax.checkpoint.encoders import (
  restore_description,
  restore_model,
  save_model,
)
from adaptssr_jax.checkpoint.items import describe
from adaptssr_jax.encoder.convert import (
  model_from_reference,
  model_to_reference,
)
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.table.lookup import encoder_params, model_params
from adaptssr_jax.training.devices import host_device
from experiments.flags.binder import SettingsError
from experiments.run.outputs import check_absent, check_new, new_file
from experiments.run.process import print_line, print_result_line


def main(settings: ConvertSettings) -> pathlib.Path:
  """Converts a model, and returns the path of the new run or file.

  Raises:
    CheckpointError: the run cannot be read, or the disk is full.
  """
  if settings.workdir:
    check_absent(pathlib.Path(settings.workdir), flag='workdir')
    return _from_torch(settings)
  check_new(pathlib.Path(settings.output), flag='output')
  if settings.vocabulary:
    check_new(pathlib.Path(settings.vocabulary), flag='vocabulary')
  if settings.vocabulary == settings.output:
    raise SettingsError('--vocabulary and --output must be two files')
  return _to_torch(settings)


def _from_torch(settings: ConvertSettings) -> pathlib.Path:
  weights = read_weights(pathlib.Path(settings.input))
  try:
    encoder, params, head = model_from_reference(
      weights,
      num_heads=settings.num_heads,
      cosine_pooling=settings.cosine_pooling,
    )
  except ValueError as error:
    raise SettingsError(f'--input={settings.input}: {error}') from error
  outputs = len(head['output']['bias']) if 'output' in head else 0
  params = model_params(params) | ({'head': head} if head else {})
  description = describe(
    encoder,
    read_items(settings.vocabulary, encoder.num_items),
    flags={'objective': 'masked_items'} if 'bias' in head else {},
    labels=[str(label) for label in range(outputs)],
  )
  save_model(settings.workdir, params, description)
  print_result_line(
    f'{settings.workdir}: an encoder of {encoder.num_items:,} items, '
    f'{encoder.num_layers} layers and {encoder.num_heads} heads'
    + (f'; its head: {", ".join(sorted(head))}' if head else '')
  )
  return pathlib.Path(settings.workdir)


def _to_torch(settings: ConvertSettings) -> pathlib.Path:
  encoder, params, vocabulary = restore_model(
    settings.input, device=host_device()
  )
  head = _head_of_both(settings, encoder, params.get('head', {}))
  try:
    weights = model_to_reference(encoder, encoder_params(params), head)
  except ValueError as error:
    raise SettingsError(f'--input={settings.input}: {error}') from error
  if settings.vocabulary and any(set('\r\n') & set(i) for i in vocabulary):
    raise SettingsError('--vocabulary: an id contains a line break')
  path = pathlib.Path(settings.output)
  write_weights(path, weights)
  if settings.vocabulary:
    text = ''.join(f'{item}\n' for item in vocabulary)
    with new_file(
      pathlib.Path(settings.vocabulary), flag='vocabulary'
    ) as aside:
      aside.write_text(text, 'utf-8')
  print_result_line(
    f'{path}: for --emb_dim={encoder.embed_dim} --max_len={encoder.max_length} '
    f'--n_layers={encoder.num_layers} --n_heads={encoder.num_heads} '
    f'--num_pooling={encoder.num_queries} '
    f'--cos_pooling={encoder.cosine_pooling}, n_items={encoder.mask_id}'
  )
  return path


def _head_of_both(
  settings: ConvertSettings, encoder: UserEncoder, head: dict[str, Any]
) -> dict[str, Any]:
  """The parts of a head that the public code has as well; prints the others."""
  flags = restore_description(settings.input).flags
  kept = set()
  if 'masked_items' in str(flags.get('objective', '')).split(','):
    kept = {'bias'}
  hidden = head.get('hidden', {'bias': []})['bias']
  if len(hidden) == encoder.embed_dim:
    kept |= {'hidden', 'output'}
  if left_out := ', '.join(sorted(head.keys() - kept)):
    print_line(
      f'{settings.input}: left out, since the public code has none: {left_out}'
    )
  return {name: head[name] for name in head.keys() & kept}


def read_weights(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads a state dict, {name: array}, without running code in it."""
  torch = _library(path)
  try:
    path.open('rb').close()
  except OSError as error:
    raise SettingsError(
      f'--input={path} cannot be read: {error.strerror}'
    ) from error
  try:
    if path.suffix == '.safetensors':
      return torch.load_file(path)
    # weights_only is safe since PyTorch 2.6.
    saved = torch.load(path, map_location='cpu', weights_only=True)
    return {str(k): v.detach().float().numpy() for k, v in saved.items()}
  # Each library raises errors of its own.
  except Exception as error:
    raise SettingsError(
      f'--input={path} is damaged, or holds more than a state dict, such as '
      'code, which is not run: write it by torch.save(model.state_dict(), ...)'
    ) from error


def write_weights(path: pathlib.Path, weights: dict[str, np.ndarray]) -> None:
  """Writes a state dict."""
  torch = _library(path)
  # PyTorch raises a RuntimeError if the disk is full.
  errors = (OSError, RuntimeError)
  with new_file(path, flag='output', errors=errors) as aside:
    if path.suffix == '.safetensors':
      aside.write_bytes(torch.save(weights))
    else:
      tensors = {k: torch.from_numpy(v) for k, v in weights.items()}
      torch.save(tensors, aside)


def _library(path: pathlib.Path) -> Any:
  """The module that reads and writes files of this name."""
  name = 'safetensors.numpy' if path.suffix == '.safetensors' else 'torch'
  try:
    return importlib.import_module(name)
  except ModuleNotFoundError as error:
    raise SettingsError(
      f"{path} needs {name}: pip install '.[torch]'"
    ) from error


def read_items(path: str, count: int) -> list[str]:
  """The raw item ids in a file; the indices as ids if there is none."""
  if not path:
    return [str(index) for index in range(1, count + 1)]
  try:
    items = pathlib.Path(path).read_text(encoding='utf-8').split('\n')
  except (OSError, UnicodeDecodeError) as error:
    raise SettingsError(
      f'--vocabulary={path} cannot be read: {error}'
    ) from error
  if not items[-1]:
    del items[-1]
  if len(items) != count:
    raise SettingsError(
      f'--vocabulary={path} has {len(items):,} lines, but the model {count:,} '
      'items: give one item per line, without the padding of index 0'
    )
  lines = {}
  for line, item in enumerate(items, 1):
    if lines.setdefault(item, line) != line:
      raise SettingsError(
        f'--vocabulary={path}, line {line}: {item!r} is also in line '
        f'{lines[item]}'
      )
  return items
