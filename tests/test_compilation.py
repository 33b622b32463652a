"""Compiled programs are found again by later runs and other processes."""

import ast
import functools
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import optax
import pytest

from adaptssr_jax.training.step import init_state
from experiments.flags.shared import RunSettings
from experiments.run.encoder import make_encoder
from experiments.run.process import enable_compilation_cache
from tests.tiny_runs import last_line_of, pretrain_settings, start

FOLDER = 'jax_compilation_cache'
# One program of all devices, and what it takes to put its arguments there.
SMALL = """
import collections, warnings
import jax
import numpy as np
from adaptssr_jax.training.devices import replicate
from adaptssr_jax.training.step import pmap_step
from experiments.run.process import enable_compilation_cache

enable_compilation_cache('auto', workdir={workdir!r})
events = collections.Counter()
listener = lambda event, **_: events.update([event])
jax.monitoring.register_event_listener(listener)
count = jax.local_device_count()
step = pmap_step(lambda state, batch: state + jax.lax.psum(batch, 'devices'))
with warnings.catch_warnings(record=True) as caught:
  warnings.simplefilter('always')
  out = step(replicate(np.float32(1)), np.ones(count, np.float32))
print({{
  'right': float(out) == count + 1,
  'hits': events['/jax/compilation_cache/cache_hits'],
  'misses': events['/jax/compilation_cache/cache_misses'],
  'warnings': [str(one.message) for one in caught],
}})
"""


@pytest.fixture
def no_cache(monkeypatch):
  """Processes started from here have no cache but the one they choose."""
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
  for name in ('MIN_COMPILE_TIME_SECS', 'MIN_ENTRY_SIZE_BYTES'):
    monkeypatch.delenv(f'JAX_PERSISTENT_CACHE_{name}', raising=False)


def compile_small(folder):
  return ast.literal_eval(
    last_line_of(SMALL.format(workdir=str(folder / 'run')))
  )


def entries(folder):
  return sorted(folder.glob('*-cache'))


def test_a_process_finds_what_two_compiled_at_the_same_time(tmp_path, no_cache):
  with ThreadPoolExecutor(2) as pool:
    for first in pool.map(compile_small, [tmp_path] * 2):
      assert first['right']
      assert first['hits'] + first['misses'] == 1
      assert first['warnings'] == []
  third = compile_small(tmp_path)
  assert third == {'right': True, 'hits': 1, 'misses': 0, 'warnings': []}
  assert [path.name for path in tmp_path.iterdir()] == [FOLDER]


def test_an_entry_that_is_broken_is_compiled_anew(tmp_path, no_cache):
  compile_small(tmp_path)
  (entry,) = entries(tmp_path / FOLDER)
  whole = entry.read_bytes()
  entry.write_bytes(whole[: len(whole) // 2])
  found = compile_small(tmp_path)
  assert found['right']
  assert found['hits'] == 0
  assert any('compilation cache' in text for text in found['warnings'])


def test_a_cache_that_jax_has_already_is_left_alone(tmp_path):
  before = jax.config.jax_compilation_cache_dir
  assert before
  enable_compilation_cache('auto', workdir=tmp_path / 'run')
  enable_compilation_cache(str(tmp_path), workdir=tmp_path / 'run')
  assert jax.config.jax_compilation_cache_dir == before


def test_a_run_may_be_resumed_with_another_cache():
  assert 'compilation_cache' in RunSettings().mutable_names()


@pytest.mark.slow
def test_a_run_of_another_seed_and_folder_compiles_nothing_new(
  tmp_path, data_dir, no_cache
):
  cache, texts = tmp_path / FOLDER, []
  for seed, name in enumerate(('first', 'second')):
    made = entries(cache)
    settings = pretrain_settings(
      tmp_path / name,
      data_dir,
      objective=('pooled_items',),
      num_steps=2,
      seed=seed,
    )
    process = start('pretrain', settings)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert 'compilation cache' not in output
    texts.append((tmp_path / name / 'metrics.jsonl').read_bytes())
  assert made
  assert entries(cache) == made
  assert texts[0] != texts[1]


def programs(caplog, function, *args):
  """How many programs a call compiles."""
  caplog.clear()
  with jax.log_compiles():
    jax.block_until_ready(function(*args))
  return sum('Finished XLA compilation' in line for line in caplog.messages)


def test_a_start_compiles_few_programs(caplog):
  params = {name: jnp.ones((2, 3 + len(name))) for name in ('a', 'bb', 'ccc')}
  assert programs(caplog, init_state, params, optax.adam(0.1)) == 1
  encoder_settings = pretrain_settings('w', 'd')
  make = functools.partial(make_encoder, encoder_settings, ['a', 'b'])
  key = jax.random.key(0)
  assert programs(caplog, lambda: make(key)[1]) == 1
  # Another run of the process finds it.
  assert programs(caplog, lambda: make(key)[1]) == 0
