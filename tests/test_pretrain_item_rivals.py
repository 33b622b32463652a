"""Pre-training by PTUM, MSDP and ECL, from flags."""

import dataclasses

import numpy as np
import pytest

from adaptssr_jax.data import Ragged, UserArrays
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.objectives import ptum
from experiments import pretrain
from experiments.flags.binder import SettingsError
from experiments.flags.traits import traits_of
from experiments.pretraining.context import cumulative_counts
from tests.tiny_runs import lines, pretrain_settings, saved_state


@pytest.mark.parametrize(
  'changes',
  [
    {
      'objective': ('ptum',),
      'table_update': 'rows',
      'shard_table': True,
      'num_queries': 2,
    },
    {'objective': ('msdp',), 'max_window': 4},
    {'objective': ('masked_items', 'ccl_filled'), 'curriculum_steps': 5},
    {'objective': ('ecl',), 'table_update': 'rows', 'sampled_items': 20},
  ],
  ids=str,
)
def test_rivals_learn(tmp_path, data_dir, changes):
  settings = pretrain_settings(
    tmp_path,
    data_dir,
    num_steps=12,
    checkpoint_every=12,
    learning_rate=0.02,
    # So that there is something to learn, however few users there are.
    output_bias='zeros',
    **changes,
  )
  pretrain.main(settings)
  found = lines(tmp_path)
  assert np.isfinite([v for line in found for v in line.values()]).all()
  losses = [line['loss'] for line in found if 'loss' in line]
  assert np.mean(losses[-2:]) < 0.98 * losses[0]


def test_ptum_goes_on_from_masked_items(tmp_path, data_dir):
  first = pretrain_settings(
    tmp_path / 'first', data_dir, num_steps=2, objective=('masked_items',)
  )
  pretrain.main(first)
  pretrain.main(
    pretrain_settings(
      tmp_path / 'second',
      data_dir,
      num_steps=1,
      objective=('ptum',),
      # Wide vectors, so that there is a head, which has no bias.
      readout='pooled,last',
      init_from=first.workdir,
    )
  )
  params = saved_state(tmp_path / 'second')['params']
  assert set(params['head']) == {'projection'}


def test_a_split_table_does_not_go_with_filled_items(tmp_path, data_dir):
  settings = pretrain_settings(
    tmp_path, data_dir, objective=('ecl',), shard_table=True
  )
  with pytest.raises(SettingsError, match='--shard_table does not go with'):
    pretrain.main(settings)


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'objective': ('ccl_filled',)}, 'start from a run of masked_items'),
    ({'objective': ('clue',), 'dropout_rate': 0.0}, '--dropout_rate=0 makes'),
    ({'objective': ('ecl',), 'dropout_rate': 0.0}, '--dropout_rate=0 makes'),
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


def test_hidden_items_are_filled_by_a_model_that_guesses(tmp_path, data_dir):
  first = pretrain_settings(
    tmp_path / 'first', data_dir, num_steps=1, objective=('next_items',)
  )
  pretrain.main(first)
  second = pretrain_settings(
    tmp_path / 'second',
    data_dir,
    objective=('ccl_filled',),
    init_from=first.workdir,
  )
  with pytest.raises(SettingsError, match='has not learned to guess hidden'):
    pretrain.main(second)


def test_a_curriculum_keeps_its_length():
  settings = pretrain_settings('', '', objective=('ccl',))
  assert not {'num_epochs', 'num_steps'} & settings.names_free_to_change()
  given = dataclasses.replace(settings, curriculum_steps=9)
  assert {'num_epochs', 'num_steps'} <= given.names_free_to_change()


def test_as_many_negatives_are_drawn_as_room_is_made_for():
  drawn = (1 + ptum.NUM_NEXT) * ptum.NUM_NEGATIVES
  assert traits_of('ptum').draws == drawn


def test_negatives_are_drawn_from_the_behaviours_of_users():
  users = UserArrays(None, Ragged.from_rows([[1, 1, 1], [3, 1]]))
  ends = cumulative_counts(UserEncoder(3, embed_dim=2), users)
  assert ends.tolist() == [0, 4, 4, 5]
  assert ends.dtype == np.int32
