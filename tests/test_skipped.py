"""Steps that are not finite change nothing, and then stop the run."""

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

# Two that are not one after the other, and all from the seventh on.
BAD = (2, 4)
FIRST_OF_MANY = 7


def spoil(monkeypatch):
  """Makes the loss of the bad steps nan, in one program for all runs."""
  loss_of = step.make_objective

  def spoilt_loss_of(context):
    loss_fn = loss_of(context)
    if not context.is_training:
      return loss_fn

    def loss(params, batch, key):
      value, metrics = loss_fn(params, batch, key)
      number = batch['step'] + 1
      bad = jnp.isin(number, jnp.array(BAD)) | (number >= FIRST_OF_MANY)
      factor = jnp.where(bad, jnp.nan, 1.0)
      total, count = metrics['loss']
      return value * factor, metrics | {'loss': (total * factor, count)}

    return loss

  monkeypatch.setattr(step, 'make_objective', spoilt_loss_of)


@pytest.fixture(scope='module')
def six_steps(tmp_path_factory, data_dir):
  """A run of six steps, two epochs, and its lines."""
  settings = pretrain_settings(
    tmp_path_factory.mktemp('skipped') / 'run',
    data_dir,
    num_steps=6,
    checkpoint_every=3,
    max_skipped=2,
    log_every=1,
    # Quick to compile.
    augmentations=('mask',),
    dropout_rate=0.0,
  )
  with pytest.MonkeyPatch.context() as patch:
    spoil(patch)
    pretrain.main(settings)
  return settings, lines(settings.workdir)


def test_a_few_skipped_steps_do_not_stop_the_run(six_steps):
  _, found = six_steps
  skipped = [line for line in found if 'skipped' in line]
  assert skipped == [{'step': n, 'skipped': 1} for n in BAD]
  steps = [line['step'] for line in found if 'loss' in line]
  assert steps == [n for n in range(1, 7) if n not in BAD]


def test_too_many_skipped_in_a_row_stop_the_run(six_steps, monkeypatch, capsys):
  spoil(monkeypatch)
  settings, before = six_steps
  longer = dataclasses.replace(settings, num_steps=30, max_skipped=4)
  train = open_data(settings, 'pretrain').splits['train']
  batch = batch_at(
    train, 9, batch_size=64, length=6, num_devices=1, seed=settings.seed
  )
  named = ', '.join(train.user_ids(batch['example_id'][0][:5]))
  six = saved_state(settings.workdir)
  # The second time from a checkpoint in the middle of them.
  for _ in range(2):
    with pytest.raises(SettingsError) as error:
      pretrain.main(longer)
    assert str(error.value) == (
      f'{settings.workdir}: stops at step 10, the last of 4 in a row whose '
      'loss or gradient is not finite (--max_skipped=4). Users of its batch: '
      f'{named} and 59 more. The newest checkpoint is good: look at these '
      'users, or use a smaller --learning_rate in another --workdir'
    )
    assert saved_steps(settings.workdir)[-1] == 9
    found = lines(settings.workdir)
    skipped = [line for line in found[len(before) :] if 'skipped' in line]
    assert skipped == [{'step': n, 'skipped': 1} for n in (7, 8, 9, 10)]
    assert found[: len(before)] == before
  # The first of them alone is reported, of which the second run knows.
  told = capsys.readouterr().out
  assert told.count('WARNING: step 7 is skipped') == 1
  for line in lines(settings.workdir):
    json.dumps(line, allow_nan=False)
  # What was learned before is all there.
  nine = saved_state(settings.workdir)
  assert_same_bits(nine['params'], six['params'])
