"""Runs each case in a process of its own."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np

from adaptssr_jax.checkpoint.items import describe
from adaptssr_jax.data import batch_at
from adaptssr_jax.encoder.model import UserEncoder
from experiments.benchmarking import cases, reference
from experiments.benchmarking.options import BenchmarkSettings
from experiments.benchmarking.work import synthetic_data
from experiments.pretraining.step import (
  batches_of,
  with_partners_and_similar,
)
from experiments.run.process import num_cores, num_cpu_devices

_ROOT = pathlib.Path(__file__).parents[2]
# It is run by its path, since this Python need not have torch.
_PYTORCH = pathlib.Path(__file__).parent / 'pytorch' / 'objectives.py'
# torch.compile compiles again when the first few lengths differ.
_WARM_UP, _WARM_UP_COMPILED = 2, 6


def run_case(
  case: cases.Case, settings: BenchmarkSettings, *, cache: str
) -> dict[str, Any]:
  """Runs a case; returns its results, or the reason of a failure as `error`.

  Args:
    cache: value of --compilation_cache for the case.
  """
  settings = dataclasses.replace(settings, **case.changes)
  with tempfile.TemporaryDirectory() as scratch:
    folder = pathlib.Path(scratch)
    if case.who == cases.OURS:
      # The choice of flags and the ablation need no profiles.
      profile = settings.profile and case.section == cases.PRE_TRAINING
      settings = dataclasses.replace(settings, profile=profile)
      return _run_ours(settings, folder, cache)
    if case.who == cases.PYTORCH:
      return _run_pytorch(settings, folder)
    return _run_reference(settings, folder, trim=case.who == cases.TRIMMED)


def _run_ours(
  settings: BenchmarkSettings, scratch: pathlib.Path, cache: str
) -> dict[str, Any]:
  reason = cases.too_large(settings)
  if reason:
    return {'error': reason}
  result = scratch / 'result.json'
  settings = dataclasses.replace(
    settings,
    quick=True,
    json=str(result),
    compilation_cache=cache,
    rounds=None,
    reference='',
    growth=False,
    gpu=False,
    ablation=False,
  )
  flags = settings.to_flagfile().splitlines()
  command = [sys.executable, '-m', 'experiments.benchmark', *flags]
  error, _ = _run(command, settings.timeout)
  return {'error': error} if error else json.loads(result.read_text())


def _run_reference(
  settings: BenchmarkSettings, scratch: pathlib.Path, *, trim: bool
) -> dict[str, Any]:
  pretraining = settings.pretraining()
  encoder = UserEncoder(
    num_items=settings.catalogues[0], **pretraining.encoder_fields()
  )
  warm_up = _WARM_UP_COMPILED if settings.gpu else _WARM_UP
  count = settings.batch_size * (settings.steps + warm_up)
  users = synthetic_data(settings, count).splits['train']
  rows = scratch / 'rows.npy'
  np.save(rows, users.items.padded(np.arange(count), encoder.max_length))
  options = {
    'checkout': str(pathlib.Path(settings.reference).absolute()),
    'rows': str(rows),
    'batch_size': settings.batch_size,
    'learning_rate': pretraining.learning_rate,
    'trim': trim,
    'warm_up': warm_up,
    'compile': settings.gpu,
    'bfloat16': settings.gpu and settings.dtype == 'bfloat16',
    'inference': settings.inference,
    'settings': {
      'base_model': 'BERT4Rec',
      'n_items': encoder.num_items,
      'max_len': encoder.max_length,
      'emb_dim': encoder.embed_dim,
      'n_layers': encoder.num_layers,
      'n_heads': encoder.num_heads,
      'pooling': 'attn',
      'num_pooling': encoder.num_queries,
      'cos_pooling': encoder.cosine_pooling,
      'trm_dropout': encoder.dropout_rate,
      'reg_coef': 1,
      'crop_ratio': pretraining.crop_ratio,
      'mask_ratio': 0.6,
      'reorder_ratio': pretraining.reorder_ratio,
    },
  }
  return _run_peer(settings, reference.__file__, options)


def _run_pytorch(
  settings: BenchmarkSettings, scratch: pathlib.Path
) -> dict[str, Any]:
  pretraining, size = settings.pretraining(), settings.batch_size
  encoder = UserEncoder(
    num_items=settings.catalogues[0], **pretraining.encoder_fields()
  )
  steps = _WARM_UP + settings.steps
  splits = with_partners_and_similar(
    pretraining,
    synthetic_data(settings, size * steps).splits,
    num_items=encoder.num_items,
  )
  made, _ = batches_of(pretraining, splits, encoder.max_length)
  users = made.users
  batches = [
    batch_at(
      users, step, batch_size=size, length=made.length, num_devices=1, seed=0
    )
    for step in range(steps)
  ]
  arrays = {
    name: np.concatenate([batch[name] for batch in batches])
    for name in ('items', 'partner_items')
    if name in batches[0]
  }
  if users.similar_items is not None:
    arrays['similar'] = users.similar_items
  np.savez(scratch / 'arrays.npz', **arrays)
  options = {
    'objective': pretraining.objective[0],
    'arrays': str(scratch / 'arrays.npz'),
    'encoder': describe(encoder, [], {}).encoder,
    'threads': settings.cpu_devices or num_cpu_devices(size, num_cores()),
    'learning_rate': pretraining.learning_rate,
    'warm_up': _WARM_UP,
    'cpu_time': settings.cpu_time,
  }
  return _run_peer(settings, _PYTORCH, options)


def _run_peer(
  settings: BenchmarkSettings,
  script: str | pathlib.Path,
  options: dict[str, Any],
) -> dict[str, Any]:
  """Runs a script by --reference_python; it prints its results as JSON."""
  command = [settings.reference_python, str(script), json.dumps(options)]
  error, output = _run(command, settings.timeout)
  if error:
    return {'error': error}
  return json.loads(output.strip().splitlines()[-1])


def _run(command: list[str], timeout: int) -> tuple[str, str]:
  """Runs a command; returns its error, empty on success, and its output."""
  environment = dict(os.environ)
  # A cache of other runs would hide the time that compilation takes.
  environment.pop('JAX_COMPILATION_CACHE_DIR', None)
  paths = [str(_ROOT), environment.get('PYTHONPATH')]
  environment['PYTHONPATH'] = os.pathsep.join(filter(None, paths))
  try:
    done = subprocess.run(
      command, capture_output=True, text=True, env=environment, timeout=timeout
    )
  except subprocess.TimeoutExpired:
    return f'not finished after {timeout} s', ''
  if done.returncode == -signal.SIGKILL:
    return 'killed, perhaps because memory ran out', ''
  if done.returncode:
    lines = done.stderr.strip().splitlines() or ['it printed nothing']
    return f'exit status {done.returncode}: {lines[-1]}', ''
  return '', done.stdout
