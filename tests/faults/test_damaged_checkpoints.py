"""A damaged checkpoint is reported, quarantined, and never used as a sound one.

A checkpoint of another model is not reported as damaged.
"""

import itertools
import os
import pathlib
import shutil
import threading
import types
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.experimental import multihost_utils

from adaptssr_jax.checkpoint.checkpoints import Checkpoints
from adaptssr_jax.checkpoint.encoders import restore_encoder
from adaptssr_jax.checkpoint.files import CheckpointError, DamagedError
from adaptssr_jax.checkpoint.items import describe
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.table.lookup import encoder_params, model_params
from adaptssr_jax.training.devices import replicate
from adaptssr_jax.training.step import init_state
from experiments.flags.binder import SettingsError
from experiments.flags.pretraining import PretrainSettings
from experiments.run import loop
from tests.tiny_runs import assert_same_bits, saved_steps

ENCODER = UserEncoder(num_items=5, max_length=3, embed_dim=4, num_layers=1)
LOG = {'after': 0, 'until': 4, 'lines': [], 'skipped_in_a_row': 0}


def state_of(encoder, step=0, change=0.0):
  params = jax.eval_shape(
    encoder.init, jax.random.key(0), jnp.ones((1, 1), jnp.int32)
  )['params']
  params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, change), params)
  state = init_state(model_params(params), optax.sgd(0.1, momentum=0.9))
  return replicate(state._replace(step=jnp.int32(step)))


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A run of two checkpoints, of steps 2 and 4."""
  folder = tmp_path_factory.mktemp('saved')
  run = Checkpoints(folder, keep=2)
  for step in (2, 4):
    run.save(
      state_of(ENCODER, step, step / 8),
      describe(ENCODER, list('abcde'), {'seed': '3'}),
      score=step / 10,
      log=LOG | {'until': step},
    )
  run.close()
  return folder


@pytest.fixture
def copied(saved, tmp_path):
  """The same, to be damaged."""
  return shutil.copytree(saved, tmp_path / 'copied')


def restore(folder, encoder=ENCODER, *, best=False):
  """The state to go on from, or the best one, and what was printed."""
  told = []
  with Checkpoints(folder, keep=2, on_progress=told.append) as run:
    find = run.restore_best if best else run.restore
    return find(state_of(encoder)), told


def cut(path):
  os.truncate(path, path.stat().st_size // 2)


def empty(path):
  os.truncate(path, 0)


DAMAGES = {'cut': cut, 'emptied': empty, 'missing': pathlib.Path.unlink}
ARRAYS = ('params', 'opt_state')
TEXTS = ('encoder', 'vocabulary', 'flags', 'log', 'metrics')


@pytest.mark.parametrize(
  ('damage', 'item'),
  [
    *(('cut', item) for item in ARRAYS + TEXTS),
    *itertools.product(('emptied', 'missing'), ('params', 'encoder')),
  ],
)
def test_a_run_goes_on_from_the_one_before(copied, item, damage):
  newest = copied / 'checkpoints' / '4'
  for path in (newest / item).rglob('*'):
    if path.is_file():
      DAMAGES[damage](path)
  before = {path for path in newest.rglob('*')}
  state, told = restore(copied)
  assert_same_bits(state, state_of(ENCODER, 2, 0.25))
  assert len(told) == 1
  assert told[0].startswith(f'{newest}: damaged (')
  assert '\n' not in told[0]
  aside = copied / 'damaged_checkpoints'
  assert str(aside) in told[0]
  assert len(list((aside / '4').rglob('*'))) == len(before)
  # Once: now it is as if it had never been there.
  assert saved_steps(copied) == [2]
  assert restore(copied)[1] == []


@pytest.mark.parametrize('text', ['{"after":', '[1]'])
def test_a_damaged_log_of_an_older_checkpoint_does_not_stop_the_run(
  copied, text
):
  older = copied / 'checkpoints' / '2'
  (older / 'log' / 'metadata').write_text(text)
  with Checkpoints(copied, keep=2, on_progress=(told := []).append) as run:
    assert_same_bits(run.restore(state_of(ENCODER)), state_of(ENCODER, 4, 0.5))
    assert run.logs() == [LOG]
  assert [line.partition(' (')[0] for line in told] == [f'{older}: damaged']
  assert saved_steps(copied) == [4]


def test_a_file_with_the_name_of_a_step_is_no_checkpoint(copied):
  (copied / 'checkpoints' / '9').touch()
  state, told = restore(copied)
  assert_same_bits(state, state_of(ENCODER, 4, 0.5))
  assert told == []


def test_a_checkpoint_of_other_flags_is_refused(copied):
  settings = PretrainSettings(seed=2)
  run = types.SimpleNamespace(settings=settings, folder=copied)
  with Checkpoints(copied, keep=2) as checkpoints:
    with pytest.raises(SettingsError, match=r'step 4 is .* --seed was 3'):
      loop._refuse_other_run(run, 4, checkpoints)
    run.settings = PretrainSettings(seed=3)
    loop._refuse_other_run(run, 4, checkpoints)


def test_a_checkpoint_that_was_renamed_to_another_step_is_not_believed(copied):
  folder = copied / 'checkpoints'
  (folder / '4').rename(folder / '7')
  state, told = restore(copied)
  assert_same_bits(state, state_of(ENCODER, 2, 0.25))
  (line,) = told
  assert line.startswith(f'{folder}/7: damaged (it was saved at step 4)')


@pytest.mark.slow
def test_no_file_of_a_checkpoint_is_lost_unseen(saved, tmp_path):
  newest, older = state_of(ENCODER, 4, 0.5), state_of(ENCODER, 2, 0.25)
  inside = pathlib.Path('checkpoints') / '4'
  names = [path.relative_to(saved) for path in (saved / inside).rglob('*')]
  # Orbax draws some names; sorted by size, each kind of file has its damage.
  names.sort(key=lambda name: (name.parent, (saved / name).stat().st_size))
  needed = 0
  damages = itertools.cycle(DAMAGES.values())
  for number, name in enumerate(names):
    folder = tmp_path / str(number)
    if not (saved / name).is_file():
      continue
    shutil.copytree(saved, folder)
    next(damages)(folder / name)
    refused, params = '', None
    try:
      _, params, _ = restore_encoder(folder)
    except DamagedError as error:
      refused = str(error)
    if refused:
      before = f'The checkpoint before it is {folder}/checkpoints/2'
      assert before in refused, name
      needed += 1
    else:
      # Nothing was lost that a reader needs.
      assert_same_bits(params, encoder_params(newest.params))
    state, told = restore(folder)
    assert_same_bits(state, older if told else newest)
    shutil.rmtree(folder)
  assert needed >= 5


def test_the_same_step_can_be_damaged_twice(copied):
  for _ in range(2):
    empty(copied / 'checkpoints' / '4' / 'encoder' / 'metadata')
    state, _ = restore(copied)
    run = Checkpoints(copied, keep=2)
    run.save(state._replace(step=jnp.int32(4)), describe(ENCODER, [], {}))
    run.close()
  aside = copied / 'damaged_checkpoints'
  assert sorted(path.name for path in aside.iterdir()) == ['4', '4.2']
  assert saved_steps(copied) == [2, 4]


@pytest.mark.parametrize('item', ['params', 'metrics'])
def test_if_all_are_damaged_nothing_is_moved(copied, item):
  for step in '24':
    for path in (copied / 'checkpoints' / step / item).rglob('*'):
      if path.is_file():
        empty(path)
  with pytest.raises(
    CheckpointError, match='all checkpoints are damaged; the newest'
  ):
    restore(copied)
  assert saved_steps(copied) == [2, 4]
  with pytest.raises(DamagedError):
    restore_encoder(copied)


def test_of_the_best_ones_the_next_is_taken(copied):
  assert_same_bits(restore(copied, best=True)[0], state_of(ENCODER, 4, 0.5))
  shutil.rmtree(copied / 'checkpoints' / '4' / 'params')
  state, told = restore(copied, best=True)
  assert_same_bits(state, state_of(ENCODER, 2, 0.25))
  assert len(told) == 1
  shutil.rmtree(copied / 'checkpoints' / '2' / 'params')
  assert restore(copied, best=True)[0] is None
  assert saved_steps(copied) == []


def test_an_error_that_may_pass_is_no_damage(copied, monkeypatch):
  def fail(*args, **settings):
    raise OSError(24, os.strerror(24))

  monkeypatch.setattr(ocp.Checkpointer, 'restore', fail)
  with pytest.raises(
    CheckpointError, match=r'4: cannot be read now .*open fil'
  ):
    restore(copied)
  assert saved_steps(copied) == [2, 4]


@pytest.mark.parametrize(
  'changes',
  [
    {'embed_dim': 6},
    {'num_layers': 2},
    {'max_length': 2},
    {'num_items': 9},
    {'num_items': 4},
  ],
)
def test_another_model_is_no_damage(copied, changes):
  with pytest.raises(CheckpointError, match=r'checkpoints/4: of another model'):
    restore(copied, ENCODER.clone(**changes))
  assert saved_steps(copied) == [2, 4]


def test_another_model_behind_a_damaged_checkpoint_is_no_damage(copied):
  shutil.rmtree(copied / 'checkpoints' / '4' / 'params')
  with pytest.raises(CheckpointError, match=r'/\d: of another model'):
    restore(copied, ENCODER.clone(embed_dim=6))
  assert saved_steps(copied) == [2, 4]


@pytest.mark.parametrize('score', ['{"score": 0.4', '{}', '[]', '{"score": 1}'])
def test_a_damaged_score(copied, score):
  (copied / 'checkpoints' / '4' / 'metrics' / 'metrics').write_text(score)
  with pytest.raises(DamagedError, match=r'checkpoints/4: damaged \(its score'):
    restore_encoder(copied)
  state, told = restore(copied)
  assert_same_bits(state, state_of(ENCODER, 2, 0.25))
  assert len(told) == 1


def test_what_a_killed_save_left_is_removed(copied):
  folder = copied / 'checkpoints'
  shutil.copytree(folder / '4', folder / '6.orbax-checkpoint-tmp')
  state, told = restore(copied)
  assert (int(state.step), told) == (4, [])
  assert saved_steps(copied) == [2, 4]


def test_no_room_for_a_checkpoint(copied, monkeypatch):
  run = Checkpoints(copied, keep=2)

  def full(*args, **settings):
    raise OSError(28, os.strerror(28))

  monkeypatch.setattr(run._manager._checkpointer, 'save', full)
  with pytest.raises(CheckpointError, match=r'No space left.*: make room, and'):
    run.save(state_of(ENCODER, 6), describe(ENCODER, [], {}))
  run.close()
  assert saved_steps(copied) == [2, 4]


def test_the_one_before_can_be_named(copied):
  empty(copied / 'checkpoints' / '4' / 'metrics' / 'metrics')
  with pytest.raises(DamagedError) as error:
    restore_encoder(copied)
  *_, before = str(error.value).split()
  _, params, _ = restore_encoder(before)
  assert_same_bits(params, encoder_params(state_of(ENCODER, 2, 0.25).params))


@pytest.fixture
def in_two_processes(monkeypatch):
  """Calls a function in two threads that are processes to it.

  Where one does not come to a collective of the other, that is an error.
  """
  here, barrier, sent = threading.local(), threading.Barrier(2, timeout=20), {}

  def process_index():
    return getattr(here, 'process', 0)

  def gather(value):
    sent[here.process] = value
    barrier.wait()
    found = np.array([sent[0], sent[1]])
    barrier.wait()
    return found

  def call_as(process, function):
    here.process = process
    try:
      return function()
    except CheckpointError as error:
      return str(error)

  def call(function):
    with monkeypatch.context() as patch, ThreadPoolExecutor(2) as pool:
      patch.setattr(jax, 'process_count', lambda: 2)
      patch.setattr(jax, 'process_index', process_index)
      patch.setattr(multihost_utils, 'process_allgather', gather)
      patch.setattr(
        multihost_utils, 'broadcast_one_to_all', lambda value: gather(value)[0]
      )
      return list(pool.map(call_as, range(2), [function] * 2))

  return call


def test_a_score_damaged_while_training_is_an_error_in_all(
  copied, in_two_processes
):
  run = Checkpoints(copied, keep=2)
  assert in_two_processes(run.best_step) == [4, 4]
  scores = [copied / f'checkpoints/{step}/metrics/metrics' for step in (2, 4)]
  empty(scores[1])
  first, second = in_two_processes(run.best_step)
  assert 'checkpoints/4: damaged (its score' in first
  assert 'the first process failed' in second
  # And of all of them at the start.
  empty(scores[0])
  first, second = in_two_processes(lambda: Checkpoints(copied, keep=2))
  assert 'all checkpoints are damaged' in first
  assert 'the first process failed' in second
  assert saved_steps(copied) == [2, 4]


def test_what_one_process_cannot_read_now_is_an_error_in_all(
  copied, in_two_processes, monkeypatch
):
  state = state_of(ENCODER)

  def read(like, step):
    if jax.process_index() == 1:
      raise CheckpointError(f'{step}: cannot be read now')
    return state

  run = Checkpoints(copied, keep=2)
  monkeypatch.setattr(run, '_restored', read)
  first, second = in_two_processes(lambda: run.restore(state))
  assert 'checkpoints/4: another process cannot read it' in first
  assert second == '4: cannot be read now'
  assert saved_steps(copied) == [2, 4]
