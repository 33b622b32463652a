"""Runs so small that a test can afford several, and the files they leave."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments import finetune, pretrain
from experiments.run.loop import Progress

ROOT = pathlib.Path(__file__).parent.parent
ENCODER = {'embed_dim': 8, 'num_layers': 1, 'max_length': 6}
# One program for all lengths, which is soon traced and compiled.
PLAIN = {'buckets': 1, 'microbatch': 0}
# 180 users to pre-train on, 3 batches an epoch; 120 to fine-tune on, 4 batches.
PRETRAIN = (
  ENCODER
  | PLAIN
  | {
    'dataset': 'synthetic_users/tiny',
    'batch_size': 64,
    'num_steps': 9,
    'log_every': 2,
    'checkpoint_every': 4,
  }
)
FINETUNE = PLAIN | {
  'dataset': 'synthetic_users/tiny',
  'task': 'gender',
  'batch_size': 32,
  'num_epochs': 3,
  'log_every': 2,
  'checkpoint_every': 3,
  # Large steps, so that epochs are better and worse.
  'learning_rate': 0.1,
  'dropout_rate': 0.1,
}


def pretrain_settings(workdir, data_dir, **changes):
  fields = PRETRAIN | {'workdir': str(workdir), 'data_dir': data_dir} | changes
  return pretrain.PretrainSettings(**fields)


def finetune_settings(workdir, data_dir, **changes):
  """Of a small encoder if none is pre-trained."""
  encoder = {} if changes.get('pretrained') else ENCODER
  place = {'workdir': str(workdir), 'data_dir': data_dir}
  return finetune.FinetuneSettings(**FINETUNE | encoder | place | changes)


def lines(workdir):
  text = (pathlib.Path(workdir) / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def files(folder):
  """Every file below a folder, by name, as bytes."""
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in sorted(pathlib.Path(folder).rglob('*'))
    if path.is_file()
  }


def saved_steps(workdir):
  folder = pathlib.Path(workdir) / 'checkpoints'
  return sorted(int(path.name) for path in folder.iterdir())


def saved_state(workdir, step=None):
  """The arrays of a checkpoint, read without the code under test."""
  step = saved_steps(workdir)[-1] if step is None else step
  folder = pathlib.Path(workdir).absolute() / 'checkpoints' / str(step)
  with ocp.PyTreeCheckpointer() as reader:
    restored = {
      name: reader.restore(
        folder / name,
        restore_args=jax.tree.map(
          lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
          reader.metadata(folder / name).item_metadata.tree,
        ),
      )
      for name in ('params', 'opt_state')
    }
  return jax.tree.map(np.asarray, restored)


def assert_same_bits(tree, other):
  leaves, structure = jax.tree.flatten(tree)
  others, other_structure = jax.tree.flatten(other)
  assert structure == other_structure
  for leaf, expected in zip(leaves, others, strict=True):
    leaf, expected = np.asarray(leaf), np.asarray(expected)
    assert (leaf.dtype, leaf.shape) == (expected.dtype, expected.shape)
    assert leaf.tobytes() == expected.tobytes()


def assert_same_run(workdir, other):
  """Two folders hold the same last state and the same metrics, to the bit."""
  metrics, expected = (
    (pathlib.Path(folder) / 'metrics.jsonl').read_bytes()
    for folder in (workdir, other)
  )
  assert metrics == expected
  assert saved_steps(workdir)[-1] == saved_steps(other)[-1]
  assert_same_bits(saved_state(workdir), saved_state(other))


class Interruption(BaseException):
  """What a run in this process dies of."""


def interrupt_at(monkeypatch, step):
  """Lets the next run die after this many steps of its own."""
  done = []
  update = Progress.update

  def count(self, loss):
    update(self, loss)
    done.append(loss)
    if len(done) == step:
      raise Interruption

  monkeypatch.setattr(Progress, 'update', count)


# Of the process itself: `ru_maxrss` begins with that of its parent.
PEAK_MIB = """
import pathlib
def peak_mib():
  status = pathlib.Path('/proc/self/status').read_text()
  return int(status.split('VmHWM:')[1].split()[0]) / 1024
"""


def last_line_of(code):
  """What a fresh interpreter prints last, without checked annotations."""
  done = subprocess.run(
    [sys.executable, '-c', code],
    capture_output=True,
    text=True,
    check=True,
    cwd=ROOT,
    env=os.environ | {'TQDM_DISABLE': '1'},
  )
  return done.stdout.strip().splitlines()[-1]


def start(module, settings):
  """Starts a command in a process of its own."""
  command = [sys.executable, '-m', f'experiments.{module}']
  flags = settings.to_flagfile().splitlines()
  return subprocess.Popen(
    command + flags,
    cwd=ROOT,
    env=os.environ | {'TQDM_DISABLE': '1'},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
