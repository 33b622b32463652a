"""The examples, and packages that the losses do not need."""

import importlib.util
import re
import runpy

import pytest

from tests.tiny_runs import ROOT, last_line_of

EXAMPLES = sorted((ROOT / 'examples').glob('*.py'))
NEEDED = {'equinox_module': 'equinox'}


@pytest.mark.parametrize('path', EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_learns(path, capsys):
  assert len(path.read_text().splitlines()) < 60
  assert (
    f'](../examples/{path.name})' in (ROOT / 'docs' / 'library.md').read_text()
  )
  pytest.importorskip(NEEDED.get(path.stem, 'jax'))
  runpy.run_path(str(path), run_name='__main__')
  found = re.findall(r'step \d+, loss (\S+)', capsys.readouterr().out)
  losses = [float(loss) for loss in found]
  assert len(losses) == 20
  # Each step draws other views.
  assert sum(losses[-5:]) < 0.97 * sum(losses[:5])


# What the losses do without, whether it is installed or not.
ABSENT = (
  'absl',
  'array_record',
  'duckdb',
  'etils',
  'flax',
  'optax',
  'orbax',
  'pyarrow',
  'sklearn',
  'tensorboardX',
  'tensorflow_datasets',
)


def test_losses_augmentations_and_metrics_work_with_jax_alone():
  assert all(importlib.util.find_spec(name) for name in ABSENT)
  line = last_line_of(f"""
import sys

class Absent:
  def find_spec(self, name, path=None, target=None):
    if name.split('.')[0] in {ABSENT!r}:
      raise ImportError(name + ' is not to be had')

sys.meta_path.insert(0, Absent())
import jax
import jax.numpy as jnp
from adaptssr_jax import augment, losses, metrics
users = jnp.broadcast_to(jnp.eye(2), (2, 2, 2, 2))
loss, gradient = jax.jit(jax.value_and_grad(losses.adaptssr_loss))(users)
view = augment.crop(jax.random.key(0), jnp.arange(1, 6), ratio=0.4)
accuracy = metrics.accuracy(jnp.eye(2), jnp.array([0, 1])).mean()
for name in {ABSENT!r}:
  assert name not in sys.modules
try:
  import flax
except ImportError as error:
  print(f'{{loss:.4f}}', gradient.shape, (view > 0).sum(), accuracy, error)
""")
  assert line == '0.3133 (2, 2, 2, 2) 2 1.0 flax is not to be had'
