"""Checkpoints are restored exactly, or an error names the damage."""

import asyncio
import functools
import inspect
import json
import pathlib
import shutil
import sys
import types

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tensorstore

from adaptssr_jax.checkpoint.checkpoints import Checkpoints
from adaptssr_jax.checkpoint.encoders import (
  restore_description,
  restore_encoder,
  restore_model,
  save_encoder,
)
from adaptssr_jax.checkpoint.files import CheckpointError
from adaptssr_jax.checkpoint.items import describe
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.table.lookup import encoder_params, model_params
from adaptssr_jax.training.devices import replicate
from adaptssr_jax.training.step import TrainState, init_state, pmap_step
from experiments.run import command
from tests.random_params import random_params
from tests.tiny_runs import assert_same_bits, saved_state, saved_steps

ENCODER = UserEncoder(
  num_items=5, max_length=3, embed_dim=4, num_layers=1, num_queries=2
)
VOCABULARY = ['shoe', 'été', '7', 'a b', '']
NAMES = [f'item {number}' for number in range(ENCODER.num_items)]
FLAGS = {'seed': '3', 'workdir': 'runs/x'}
OPTIMIZER = optax.adam(0.1)
USER = np.array([[1, 5]], np.int32)


def plus(leaf, change):
  return jnp.asarray(np.asarray(leaf) + np.asarray(change, leaf.dtype))


@pytest.fixture(scope='module')
def state():
  return init_state(model_params(random_params(ENCODER, USER)), OPTIMIZER)


def at(state, step, change=0.0):
  """A state at a step, whose parameters depend on `change`."""
  params = jax.tree.map(lambda leaf: plus(leaf, change), state.params)
  return state._replace(step=jnp.int32(step), params=params)


def save(folder, *states, keep=9, scores=None, labels=None, encoder=ENCODER):
  checkpoints = Checkpoints(folder, keep=keep)
  description = describe(encoder, VOCABULARY, FLAGS, labels)
  for number, state in enumerate(states):
    score = scores[number] if scores else None
    checkpoints.save(state, description, score=score)
  checkpoints.close()
  return folder


def restore(folder, like, *, best=False):
  with Checkpoints(folder, keep=9) as checkpoints:
    return (checkpoints.restore_best if best else checkpoints.restore)(like)


@pytest.fixture(scope='module')
def saved(state, tmp_path_factory):
  """A run of two checkpoints without scores."""
  folder = tmp_path_factory.mktemp('saved')
  return save(folder, at(state, 2, 0.5), at(state, 4, 1.5))


@pytest.fixture
def copied(saved, tmp_path):
  """A copy of `saved` that a test may damage."""
  return shutil.copytree(saved, tmp_path / 'copied')


def test_a_state_comes_back_to_the_bit(saved, state):
  assert_same_bits(restore(saved, state), at(state, 4, 1.5))
  assert restore(saved, state, best=True) is None


def test_nothing_saved_restores_nothing(tmp_path, state):
  assert restore(tmp_path, state) is None


def test_the_optimizer_comes_back_too(tmp_path, state):
  leaves, structure = jax.tree.flatten(state.opt_state)
  moments = structure.unflatten(map(plus, leaves, range(1, 1 + len(leaves))))
  moved = state._replace(opt_state=moments, step=jnp.int32(1))
  save(tmp_path, moved)
  assert_same_bits(restore(tmp_path, state), moved)


def test_a_step_is_saved_once(tmp_path, state):
  save(tmp_path, at(state, 3), at(state, 3, 9.0))
  assert_same_bits(restore(tmp_path, state), at(state, 3))


@pytest.mark.parametrize('keep', [1, 2])
def test_the_latest_are_kept(tmp_path, state, keep):
  save(tmp_path, *[at(state, step) for step in (1, 2, 3, 4)], keep=keep)
  assert saved_steps(tmp_path) == [1, 2, 3, 4][-keep:]


@pytest.mark.parametrize(
  ('scores', 'best', 'kept'),
  [
    ([0.1, 0.9, 0.9, 0.5, 0.2], 2, [2, 5]),
    ([0.3, 0.1, 0.2, 0.3, 0.1], 1, [1, 5]),
    ([0.1, 0.2, 0.3, 0.4, 0.5], 5, [5]),
  ],
)
def test_the_best_is_kept_the_first_of_equals(
  tmp_path, state, scores, best, kept
):
  states = [at(state, step + 1, step) for step in range(5)]
  save(tmp_path, *states, keep=1, scores=scores)
  assert saved_steps(tmp_path) == kept
  checkpoints = Checkpoints(tmp_path, keep=1)
  assert checkpoints.best_step() == best
  checkpoints.close()
  _, params, _ = restore_encoder(tmp_path)
  assert_same_bits(params, encoder_params(states[best - 1].params))


@pytest.mark.parametrize('broken', [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_never_the_best(tmp_path, state, broken):
  states = [at(state, step, step) for step in (1, 2, 3, 4)]
  save(tmp_path, *states, keep=1, scores=[broken, 0.2, 0.1, broken])
  assert saved_steps(tmp_path) == [2, 4]
  _, params, _ = restore_encoder(tmp_path)
  assert_same_bits(params, encoder_params(states[1].params))


def test_the_best_may_be_the_one_still_being_saved(tmp_path, state):
  # Large enough that saving takes longer than asking.
  large = {'encoder': encoder_params(state.params), 'head': jnp.ones(4_000_000)}
  checkpoints = Checkpoints(tmp_path, keep=1)
  for step, score in ((1, 0.1), (2, 0.9)):
    checkpoints.save(
      state._replace(step=jnp.int32(step), params=large),
      describe(ENCODER, VOCABULARY, FLAGS),
      score=score,
    )
  assert checkpoints.best_step() == 2
  checkpoints.close()


def test_one_checkpoint_can_be_named(tmp_path, state):
  states = [at(state, step, step) for step in (1, 2)]
  save(tmp_path, *states, keep=2)
  _, params, _ = restore_encoder(tmp_path / 'checkpoints' / '1')
  assert_same_bits(params, encoder_params(states[0].params))


@pytest.mark.parametrize('folder', ['.', 'checkpoints'])
def test_an_encoder_is_rebuilt_from_its_checkpoint_alone(saved, state, folder):
  encoder, params, vocabulary = restore_encoder(str(saved / folder))
  assert encoder == ENCODER
  assert vocabulary == VOCABULARY
  assert_same_bits(params, encoder_params(at(state, 4, 1.5).params))
  for leaf in jax.tree.leaves(params):
    assert leaf.devices() == {jax.local_devices()[0]}
  users = jax.eval_shape(encoder.apply, {'params': params}, USER)
  assert users.shape == (1, 8)


def test_restoring_warns_of_nothing(saved, state, caplog):
  restore_encoder(saved)
  restore(saved, state)
  assert [record.getMessage() for record in caplog.records] == []


def test_a_fine_tuned_encoder_is_rebuilt_with_and_without_its_head(
  tmp_path, state
):
  head = {'output': jnp.ones((2, 3)), 'bias': jnp.arange(6.0)}
  tuned = state._replace(params={**state.params, 'head': head})
  save(tmp_path, at(tuned, 1), scores=[0.5], labels=['no', 'yes'])
  encoder, params, _ = restore_encoder(tmp_path)
  assert encoder == ENCODER
  assert_same_bits(params, encoder_params(state.params))
  encoder, params, vocabulary = restore_model(tmp_path)
  assert (encoder, vocabulary) == (ENCODER, VOCABULARY)
  assert_same_bits(params, tuned.params)
  assert restore_description(tmp_path).labels == ['no', 'yes']


def test_an_encoder_of_a_version_without_causal(tmp_path, state):
  description = describe(ENCODER, VOCABULARY, FLAGS)
  fields = dict(description.encoder)
  assert (fields.pop('causal'), fields.pop('readout')) == (False, 'pooled')
  with Checkpoints(tmp_path, keep=1) as checkpoints:
    checkpoints.save(state, description._replace(encoder=fields))
  assert restore_encoder(tmp_path)[0] == ENCODER


def test_a_description_comes_back(saved):
  description = restore_description(saved)
  assert description.flags == FLAGS
  assert description.vocabulary == VOCABULARY
  assert description.labels == []
  assert description.encoder['num_queries'] == 2


@pytest.mark.parametrize('devices', [1, 4, 8])
def test_a_state_of_eight_devices_is_restored_onto_others(
  tmp_path, state, devices
):
  save(tmp_path, replicate(at(state, 7)))
  mesh = jax.make_mesh((devices,), ('x',), devices=jax.devices()[:devices])
  place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  restored = restore(tmp_path, jax.device_put(state, place))
  for leaf in jax.tree.leaves(restored):
    assert leaf.sharding.is_equivalent_to(place, leaf.ndim)
  assert_same_bits(restored, at(state, 7))


def test_a_state_donated_while_it_is_saved_is_saved_unchanged(tmp_path):
  def step(state, batch):
    del batch
    return jax.tree.map(lambda leaf: leaf + 1, state)

  step = pmap_step(step, donate=True)
  # Large enough that it is still being written during the next steps.
  params = {'encoder': jnp.arange(1_000_000, dtype=jnp.float32)}
  state = replicate(TrainState(jnp.int32(0), params, (jnp.zeros(1_000_000),)))
  batch = np.zeros((8, 1), np.float32)
  checkpoints = Checkpoints(tmp_path, keep=9)
  for number in range(1, 13):
    state = step(state, batch)
    if number in (1, 6):
      checkpoints.save(state, describe(ENCODER, VOCABULARY, FLAGS))
  checkpoints.close()
  for number in (1, 6):
    restored = saved_state(tmp_path, number)
    np.testing.assert_array_equal(
      restored['params']['encoder'], np.arange(1_000_000) + number
    )
    np.testing.assert_array_equal(
      restored['opt_state'][0], np.full(1_000_000, number)
    )


def fail_after_the_loop():
  """The error of an array whose event loop has ended before its save."""
  promise, written = tensorstore.Promise.new()

  async def wait():
    await written

  async def wait_in_vain():
    await asyncio.wait([asyncio.ensure_future(wait())], timeout=0.01)

  loop = asyncio.new_event_loop()
  loop.run_until_complete(wait_in_vain())
  loop.close()
  promise.set_exception(OSError('no room'))


async def read_an_array():
  try:
    await asyncio.sleep(0)
  except GeneratorExit as error:
    raise RuntimeError('an array was not read') from error


def test_errors_that_follow_from_a_failed_checkpoint_are_not_printed(
  monkeypatch,
):
  events = []
  monkeypatch.setattr(sys, 'unraisablehook', events.append)
  fail_after_the_loop()
  coroutine = read_an_array()
  coroutine.send(None)
  # It is left before it has ended.
  del coroutine
  printed = []
  closed, left = events
  for event in (closed, left):
    command._report(printed.append, event)
  assert not printed
  # Any other error is reported as before.
  event = types.SimpleNamespace(exc_value=ValueError('other'), object=None)
  command._report(printed.append, event)
  assert printed == [event]


def test_a_missing_folder(tmp_path):
  with pytest.raises(CheckpointError, match='absent: no such folder'):
    restore_encoder(tmp_path / 'absent')
  assert not (tmp_path / 'absent').exists()


@pytest.mark.parametrize('inside', ['', 'checkpoints'])
def test_a_folder_without_checkpoints(tmp_path, inside):
  (tmp_path / 'run' / inside).mkdir(parents=True)
  with pytest.raises(CheckpointError, match='run: holds no checkpoint'):
    restore_encoder(tmp_path / 'run')


def truncate_files(folder, keep):
  """Cuts every file of a folder to a share of its bytes."""
  for path in pathlib.Path(folder).rglob('*'):
    if path.is_file() and path.name != 'commit_success.txt':
      path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])


# Scores are damaged in `faults/test_damaged_checkpoints.py`.
@pytest.mark.parametrize(
  'damage',
  [
    functools.partial(truncate_files, keep=0),
    functools.partial(truncate_files, keep=0.5),
    shutil.rmtree,
  ],
  ids=['empty', 'truncated', 'missing'],
)
@pytest.mark.parametrize('item', ['params', 'encoder', 'vocabulary'])
def test_a_damaged_part(copied, item, damage):
  damage(copied / 'checkpoints' / '4' / item)
  with pytest.raises(CheckpointError, match=r'checkpoints/4: damaged'):
    restore_encoder(copied)


def test_a_checkpoint_half_written_is_no_checkpoint(copied, state):
  """A killed run leaves the folder of the step under a temporary name."""
  folder = copied / 'checkpoints'
  (folder / '4').rename(folder / '4.orbax-checkpoint-tmp')
  assert_same_bits(restore(copied, state), at(state, 2, 0.5))
  assert_same_bits(
    restore_encoder(copied)[1], encoder_params(at(state, 2, 0.5).params)
  )


def test_a_vocabulary_on_the_disk_is_json(saved):
  path = saved / 'checkpoints' / '4' / 'vocabulary' / 'metadata'
  assert json.loads(path.read_text()) == VOCABULARY


def test_an_encoder_trained_elsewhere_is_restored(tmp_path):
  params = random_params(ENCODER, USER)
  save_encoder(tmp_path / 'run', ENCODER, params, NAMES)
  encoder, restored, vocabulary = restore_encoder(tmp_path / 'run')
  assert (encoder, vocabulary) == (ENCODER, NAMES)
  assert_same_bits(restored, params)
  with pytest.raises(CheckpointError, match='there are checkpoints already'):
    save_encoder(tmp_path / 'run', ENCODER, params, NAMES)
  with pytest.raises(ValueError, match='does not fit an encoder of'):
    save_encoder(tmp_path / 'new', ENCODER, params, NAMES[1:])
  assert not (tmp_path / 'new').exists()


def test_parameters_may_be_arrays_of_numpy_in_a_frozen_dict(tmp_path):
  params = random_params(ENCODER, USER)
  frozen = flax.core.freeze(jax.device_get(params))
  save_encoder(tmp_path, ENCODER, frozen, NAMES)
  _, restored, _ = restore_encoder(tmp_path)
  assert_same_bits(restored, params)


def test_a_number_of_numpy_is_described_as_a_number():
  encoder = ENCODER.clone()
  # Set like this, because in tests the annotations would raise.
  object.__setattr__(encoder, 'num_items', np.int64(ENCODER.num_items))
  assert json.dumps(describe(encoder, [], {}).encoder)


def test_what_does_not_fit_an_encoder_is_not_saved(tmp_path):
  params = random_params(ENCODER, USER)
  without = {name: x for name, x in params.items() if name != 'pooling'}
  for wrong in ({'params': params}, without):
    with pytest.raises(ValueError, match='is missing, not'):
      save_encoder(tmp_path, ENCODER, wrong, NAMES)
  wider = ENCODER.clone(embed_dim=2 * ENCODER.embed_dim)
  with pytest.raises(ValueError, match='do not fit the encoder'):
    save_encoder(tmp_path, wider, params, NAMES)
  with pytest.raises(ValueError, match="has the raw item id 'item 0' twice"):
    save_encoder(tmp_path, ENCODER, params, [*NAMES[:-1], NAMES[0]])
  with pytest.raises(ValueError, match='a raw item id is a string, not 0'):
    # Unwrapped, because in tests the annotations would raise first.
    inspect.unwrap(save_encoder)(tmp_path, ENCODER, params, [0, 1, 2, 3, 4])
  assert not list(tmp_path.iterdir())
