"""Steps that would spoil the parameters change nothing, and stop the run."""

import dataclasses
import json

import jax.numpy as jnp
import pytest

from adaptssr_jax.data.prepared.batches import batch_at
from experiments import pretrain
from experiments.flags.binder import SettingsError
from experiments.pretraining import step
from experiments.run.data import open_data
from tests.tiny_runs import (
  assert_same_bits,
  lines,
  pretrain_settings,
  saved_state,
  saved_steps,
)


def spoil(monkeypatch, users):
  """Makes the loss of every batch with one of these users nan."""
  loss_of = step.make_objective
  users = jnp.array(sorted(users))

  def spoilt_loss_of(context):
    loss_fn = loss_of(context)
    if not context.is_training:
      return loss_fn

    def loss(params, batch, key):
      value, metrics = loss_fn(params, batch, key)
      bad = jnp.isin(batch['example_id'], users) & batch['where']
      factor = jnp.where(bad.any(), jnp.nan, 1.0)
      total, count = metrics['loss']
      return value * factor, metrics | {'loss': (total * factor, count)}

    return loss

  monkeypatch.setattr(step, 'make_objective', spoilt_loss_of)


@pytest.fixture(scope='module')
def good(tmp_path_factory, data_dir):
  """A run of six good steps, two epochs."""
  folder = tmp_path_factory.mktemp('skipped') / 'run'
  settings = pretrain_settings(
    folder, data_dir, num_steps=6, checkpoint_every=2
  )
  pretrain.main(settings)
  return settings


def test_good_steps_are_not_said_to_be_skipped(good):
  assert all('skipped' not in line for line in lines(good.workdir))


def test_too_many_skipped_in_a_row_stop_the_run(good, monkeypatch, capsys):
  spoil(monkeypatch, range(180))
  longer = dataclasses.replace(good, num_steps=30, max_skipped=4)
  train = open_data(good, 'pretrain').splits['train']
  batch = batch_at(
    train, 9, batch_size=64, length=6, num_devices=1, seed=good.seed
  )
  named = ', '.join(train.user_ids(batch['example_id'][0][:5]))
  before, six = lines(good.workdir), saved_state(good.workdir)
  # The second time from a checkpoint in the middle of them.
  for _ in range(2):
    with pytest.raises(SettingsError) as error:
      pretrain.main(longer)
    assert str(error.value) == (
      f'{good.workdir}: stops at step 10, the last of 4 in a row whose loss '
      'or gradient is not finite (--max_skipped=4). Users of its batch: '
      f'{named} and 59 more. The newest checkpoint is good: look at these '
      'users, or take a smaller --learning_rate in another --workdir'
    )
    assert saved_steps(good.workdir)[-1] == 9
    skipped = [line for line in lines(good.workdir) if 'skipped' in line]
    assert skipped == [{'step': n, 'skipped': 1} for n in (7, 8, 9, 10)]
    assert lines(good.workdir)[: len(before)] == before
  # The first of them alone is reported, of which the second run knows.
  told = capsys.readouterr().out
  assert told.count('WARNING: step 7 is skipped') == 1
  for line in lines(good.workdir):
    json.dumps(line, allow_nan=False)
  # What was learned before is all there.
  nine = saved_state(good.workdir)
  assert_same_bits(nine['params'], six['params'])


def test_a_few_skipped_steps_do_not_stop_the_run(
  tmp_path, data_dir, monkeypatch
):
  train = open_data(pretrain_settings(tmp_path, data_dir), 'pretrain')
  bad = batch_at(
    train.splits['train'],
    1,
    batch_size=64,
    length=6,
    num_devices=1,
    seed=0,
  )['example_id'][0][7]
  spoil(monkeypatch, [bad])
  settings = pretrain_settings(
    tmp_path / 'run', data_dir, max_skipped=2, log_every=1
  )
  pretrain.main(settings)
  found = [line for line in lines(settings.workdir) if 'skipped' in line]
  # Once an epoch, of three.
  assert len(found) == 3
  assert found[0] == {'step': 2, 'skipped': 1}
  steps = [line['step'] for line in lines(settings.workdir) if 'loss' in line]
  assert len(steps) == 6
