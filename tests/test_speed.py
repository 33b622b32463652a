"""The speed flags: their defaults and errors, and that results stay equal."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adaptssr_jax.checkpoint.encoders import restore_encoder
from adaptssr_jax.data import Ragged, UserArrays
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.ops.buckets import Buckets
from adaptssr_jax.table.lookup import encoder_params
from adaptssr_jax.training.row_step import RowOptState, row_train_step
from adaptssr_jax.training.step import train_step
from experiments import finetune, pretrain
from experiments.flags.binder import SettingsError
from experiments.flags.process import EncodingSettings
from experiments.pretraining.step import encoded_lengths
from experiments.run.steps import (
  effective_length,
  make_buckets,
  make_step,
  sample_lengths,
)
from tests.tiny_runs import (
  Interruption,
  assert_same_bits,
  assert_same_run,
  finetune_settings,
  interrupt_at,
  lines,
  pretrain_settings,
  saved_state,
)

# Large steps, so that a row left behind would show in the losses.
FAST = {'learning_rate': 0.01}


@pytest.fixture(scope='module')
def runs(tmp_path_factory, data_dir):
  """The same run by rows and with the whole table: folder and last state."""
  folder = tmp_path_factory.mktemp('speed')
  found = {}
  for name in ('rows', 'dense'):
    settings = pretrain_settings(
      folder / name, data_dir, table_update=name, **FAST
    )
    found[name] = settings.workdir, pretrain.main(settings)
  return found


def test_a_run_by_rows_has_the_numbers_of_a_dense_one(runs):
  found, expected = (lines(runs[name][0]) for name in ('rows', 'dense'))
  assert len(found) == len(expected) == 8
  for line, other in zip(found, expected, strict=True):
    assert line.keys() == other.keys()
    for name, value in other.items():
      # What rounding did to the parameters is far less than what training did.
      column = [each[name] for each in expected if name in each]
      way = max(column) - min(column)
      assert abs(line[name] - value) <= 1e-2 * way + 1e-4 * abs(value), name
  losses = [line['loss'] for line in expected if 'loss' in line]
  assert max(losses) - min(losses) > 1e-3


def test_the_state_returned_is_that_of_the_checkpoint(runs):
  folder, state = runs['rows']
  _, params, _ = restore_encoder(folder)
  assert isinstance(state.opt_state, RowOptState)
  assert_same_bits(encoder_params(state.params), params)
  # The checkpoint itself holds rows that are behind.
  late = saved_state(folder, int(state.step))['params']
  behind = np.abs(late['table'] - params['item_embedding'])
  assert behind.max() > 1e-4


def test_a_run_by_rows_is_resumed_to_the_bit(
  runs, tmp_path, data_dir, monkeypatch
):
  settings = pretrain_settings(tmp_path, data_dir, table_update='rows', **FAST)
  with monkeypatch.context() as patch:
    interrupt_at(patch, 5)
    with pytest.raises(Interruption):
      pretrain.main(settings)
  state = pretrain.main(settings)
  folder, expected = runs['rows']
  assert_same_run(tmp_path, folder)
  assert_same_bits(state.params, expected.params)


@pytest.mark.parametrize(
  ('command', 'changes', 'flag'),
  [
    ('pretrain', {'weight_decay': 0.1}, r'--weight_decay=0\.1'),
    ('pretrain', {'objective': ('masked_items',)}, '--objective=masked_items'),
    ('pretrain', {'schedule': 'linear'}, '--schedule=linear'),
    ('pretrain', {'warmup_steps': 5}, '--warmup_steps=5'),
    ('finetune', {'weight_decay': 0.1}, r'--weight_decay=0\.1'),
    ('finetune', {'mode': 'frozen'}, '--mode=frozen'),
    ('finetune', {'mode': 'probe'}, '--mode=probe'),
  ],
)
def test_rows_are_refused_where_they_do_not_go(
  tmp_path, data_dir, command, changes, flag
):
  main, make_settings = {
    'pretrain': (pretrain.main, pretrain_settings),
    'finetune': (finetune.main, finetune_settings),
  }[command]
  changes = changes | {'table_update': 'rows'}
  settings = make_settings(tmp_path / 'run', data_dir, **changes)
  words = f'--table_update=rows does not go with {flag}, .*=auto'
  with pytest.raises(SettingsError, match=words):
    main(settings)
  assert not list(tmp_path.iterdir())


def training_of(num_items, **changes):
  """The step and the state, of batches of 2 users with 2 behaviours: 6 rows."""
  encoder = UserEncoder(num_items, max_length=2, embed_dim=2)
  settings = pretrain_settings('', '', batch_size=2, **changes)
  step, state = make_step(
    settings,
    encoder,
    {'table': jnp.ones((num_items + 2, 2)), 'encoder': {}},
    lambda params, batch, key: None,
    optax.sgd(1.0),
    ids_per_user=2,
    sampled_items=settings.sampled_items,
  )
  return step, isinstance(state.opt_state, RowOptState)


@pytest.mark.parametrize(
  ('num_items', 'changes', 'rows'),
  [
    (18, {}, False),
    (19, {}, True),
    (19, {'table_update': 'dense'}, False),
    (3, {'table_update': 'rows'}, True),
    (19, {'weight_decay': 0.1}, False),
    (19, {'objective': ('masked_items',)}, False),
    (25, {'objective': ('masked_items',), 'sampled_items': 2}, True),
  ],
)
def test_rows_pay_from_some_items_on(num_items, changes, rows):
  step, has_row_state = training_of(num_items, **changes)
  assert has_row_state == rows
  assert step.func == (row_train_step if rows else train_step)


def users_of(lengths):
  rows = [list(range(1, length + 1)) for length in lengths]
  ids = [str(row).encode() for row in range(len(rows))]
  return UserArrays(
    Ragged.from_rows([list(one) for one in ids], np.uint8),
    Ragged.from_rows(rows),
  )


@pytest.mark.parametrize(
  ('lengths', 'max_length', 'expected'),
  [
    (([2, 5], [3]), 9, 5),
    (([2], [7, 1]), 9, 7),
    (([2], [7]), 4, 4),
    (([0], [0]), 4, 1),
  ],
)
def test_batches_are_as_long_as_the_longest_user(lengths, max_length, expected):
  splits = [users_of(some) for some in lengths]
  assert effective_length(splits, max_length) == expected


def test_lengths_are_those_of_what_batches_hold():
  assert sample_lengths(users_of([3, 0, 8, 5]), 5).tolist() == [3, 0, 5, 5]


@pytest.mark.parametrize(
  ('changes', 'expected'),
  [
    ({'augmentations': ('mask',)}, [3, 10, 3, 10]),
    ({'augmentations': ('crop',)}, [2, 4, 2, 4]),
    (
      {'augmentations': ('crop', 'reorder')},
      [2, 4, 3, 10, 2, 4, 3, 10],
    ),
    (
      {'augmentations': ('mask',), 'second_augmentations': ('crop',)},
      [3, 10, 2, 4],
    ),
    ({'objective': ('masked_items',), 'augmentations': ('crop',)}, [3, 10]),
  ],
)
def test_views_have_the_lengths_of_their_augmentations(changes, expected):
  settings = pretrain_settings('', '', crop_ratio=0.4, **changes)
  found = encoded_lengths(settings, np.array([3, 10]), max_length=100)
  assert found.tolist() == expected


def test_slices_have_lengths_of_their_own():
  settings = pretrain_settings(
    '', '', objective=('pooled_items',), slice_lengths=('2', '6')
  )
  found = encoded_lengths(settings, np.array([3, 50]), max_length=6)
  # Of 3 behaviours no more than 3; of 50, from 2 to 6 alike.
  assert set(found) == {2, 3, 4, 5, 6}
  assert (found == 3).sum() > (found == 6).sum() >= 1


def test_buckets_are_of_16_sequences_on_a_cpu():
  lengths = np.array([3, 3, 3, 20])
  made = functools.partial(make_buckets, lengths=lengths)
  assert jax.default_backend() == 'cpu'
  assert made(EncodingSettings()) == Buckets((4, 20), 16)
  assert made(EncodingSettings(microbatch=7)) == Buckets((4, 20), 7)
  assert made(EncodingSettings(microbatch=0)) == Buckets((4, 20), None)
  assert made(EncodingSettings(buckets=1, microbatch=0)) == Buckets()
  empty = make_buckets(EncodingSettings(), np.array([0, 0]))
  assert empty == Buckets((1,), 16)


def test_buckets_elsewhere_are_larger(monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert make_buckets(EncodingSettings(), np.array([3])).size == 256
