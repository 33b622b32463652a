"""Pre-training by PTUM, MSDP and ECL, from flags."""

import dataclasses

import numpy as np
import pytest

from adaptssr_jax.data import Ragged, UserArrays
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.objectives import ptum
from experiments import pretrain
from experiments.flags.binder import SettingsError
from experiments.flags.objectives import TRAITS
from experiments.pretraining.step import cumulative_counts
from tests.tiny_runs import lines, pretrain_settings, saved_state

RIVALS = ('msdp', 'ecl', 'ccl_filled')
RUN = {
  'num_steps': 12,
  'checkpoint_every': 12,
  'learning_rate': 0.02,
  # So that there is something to learn, however few users there are.
  'output_bias': 'zeros',
}


@pytest.fixture(scope='module')
def run(tmp_path_factory, data_dir):
  """The workdir of a run of three at once."""
  settings = pretrain_settings(
    tmp_path_factory.mktemp('rivals'),
    data_dir,
    objective=RIVALS,
    max_window=4,
    curriculum_steps=5,
    **RUN,
  )
  pretrain.main(settings)
  return settings.workdir


@pytest.fixture(scope='module')
def next_run(run, tmp_path_factory, data_dir):
  """The workdir of a run of PTUM that goes on from there."""
  settings = pretrain_settings(
    tmp_path_factory.mktemp('next'),
    data_dir,
    objective=('ptum',),
    # Wide vectors, so that there is a head, which has no bias.
    readout='pooled,last',
    init_from=run,
    # The row of a negative that is not there would be nan.
    table_update='rows',
    shard_table=True,
    **RUN,
  )
  pretrain.main(settings)
  return settings.workdir


def assert_learned(workdir, *losses):
  found = lines(workdir)
  assert np.isfinite([v for line in found for v in line.values()]).all()
  for loss in losses:
    values = [line[loss] for line in found if loss in line]
    assert np.mean(values[-2:]) < 0.98 * values[0], (loss, values)


def test_rivals_learn(run):
  assert_learned(run, *[f'{name}_loss' for name in RIVALS])


def test_ptum_starts_from_a_run_that_predicts_items(run, next_run):
  source, params = (saved_state(folder)['params'] for folder in (run, next_run))
  assert 'bias' in source['head']
  assert set(params['head']) == {'projection'}
  assert_learned(next_run, 'loss')


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'objective': ('ccl_filled',)}, 'start from a run of masked_items'),
    ({'objective': ('clue',), 'dropout_rate': 0.0}, '--dropout_rate=0 makes'),
    ({'objective': ('ecl',), 'dropout_rate': 0.0}, '--dropout_rate=0 makes'),
    ({'objective': ('ecl',), 'shard_table': True}, '--shard_table does not go'),
    # Its own views are edits, whatever those of AdaptSSR would be.
    (
      {
        'objective': ('ccl', 'pooled_items'),
        'second_augmentations': ('slice',),
      },
      '--objective=ccl: .* give slice to both views',
    ),
  ],
)
def test_what_no_rival_can_do_is_refused(tmp_path, data_dir, changes, words):
  with pytest.raises(SettingsError, match=words):
    pretrain.main(pretrain_settings(tmp_path, data_dir, **changes))


def test_masked_items_are_filled_by_a_model_that_predicts_them(
  next_run, tmp_path, data_dir
):
  settings = pretrain_settings(
    tmp_path, data_dir, objective=('ccl_filled',), init_from=next_run
  )
  with pytest.raises(SettingsError, match='not trained to predict masked'):
    pretrain.main(settings)


def test_a_curriculum_keeps_its_length():
  settings = pretrain_settings('', '', objective=('ccl',))
  assert not {'num_epochs', 'num_steps'} & settings.mutable_names()
  given = dataclasses.replace(settings, curriculum_steps=9)
  assert {'num_epochs', 'num_steps'} <= given.mutable_names()


def test_as_many_negatives_are_drawn_as_room_is_made_for():
  drawn = (1 + ptum.NUM_NEXT) * ptum.NUM_NEGATIVES
  assert TRAITS['ptum'].draws == drawn


def test_negatives_are_drawn_from_the_behaviours_of_users():
  users = UserArrays(None, Ragged.from_rows([[1, 1, 1], [3, 1]]))
  ends = cumulative_counts(UserEncoder(3, embed_dim=2), users)
  assert ends.tolist() == [0, 4, 4, 5]
  assert ends.dtype == np.int32
  # With --plan_items there may be fewer items than in the data.
  fewer = cumulative_counts(UserEncoder(1, embed_dim=2), users)
  assert fewer.tolist() == [0, 4]
