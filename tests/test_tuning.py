"""Fine-tuning: learning rates of layers, and heads that start as the probe."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptssr_jax.checkpoint.encoders import restore_encoder
from adaptssr_jax.data import UserData, Vocabulary
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.objectives.classification import (
  classification_objective,
  conversion_objective,
)
from adaptssr_jax.objectives.ranking import (
  ranking_objective,
  softmax_ranking_objective,
)
from adaptssr_jax.ops.buckets import AT_ONCE
from adaptssr_jax.table.lookup import model_params
from experiments import finetune
from experiments.finetuning import step as tuning
from experiments.flags.binder import SettingsError
from experiments.flags.finetuning import FinetuneSettings, with_defaults
from experiments.run import loop
from tests.fine_tuned import start_of
from tests.tiny_runs import finetune_settings, lines, saved_state

ENCODER = UserEncoder(num_items=3, max_length=2, embed_dim=2, num_layers=2)
EMBEDDINGS = ('norm', 'position_embedding', 'table')
# What is trained of two layers, the pooling first, by powers of the decay.
DEPTHS = {'pooling': 0, 'blocks_1': 1, 'blocks_0': 2} | dict.fromkeys(
  EMBEDDINGS, 3
)


def params_of(value=0.0):
  items = jnp.ones((1, 2), jnp.int32)
  shapes = jax.eval_shape(ENCODER.init, jax.random.key(0), items)['params']
  encoder = jax.tree.map(lambda leaf: jnp.full(leaf.shape, value), shapes)
  return model_params(encoder) | {'head': {'output': jnp.full(2, value)}}


def moves(settings, steps, **kwargs):
  """The least and the largest move of each part, by gradients of ones."""
  optimizer = tuning.make_optimizer(
    settings, ENCODER, num_steps=steps, **kwargs
  )
  params = params_of()
  state, found = optimizer.init(params), []
  for _ in range(steps):
    updates, state = optimizer.update(params_of(1.0), state, params)
    parts = updates['encoder'] | updates
    del parts['encoder']
    values = {name: leaf_values(part) for name, part in parts.items()}
    found.append({name: [v.min(), v.max()] for name, v in values.items()})
  return found


def leaf_values(part):
  return np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(part)])


def test_each_layer_is_trained_less_than_the_one_above():
  settings = FinetuneSettings(
    learning_rate=0.1, encoder_learning_rate=0.08, layer_decay=0.5
  )
  rates = {name: 0.08 * 0.5**depth for name, depth in DEPTHS.items()}
  assert tuning.layer_rates(settings, ENCODER) == pytest.approx(rates)
  # The first step of Adam is as long as its rate.
  (found,) = moves(settings, 1)
  for name, rate in (rates | {'head': 0.1}).items():
    assert found[name] == pytest.approx([-rate] * 2, rel=1e-5), name


def test_the_head_alone_is_trained_at_first():
  settings = FinetuneSettings(learning_rate=0.1)
  *early, third = moves(settings, 3, head_steps=2)
  for found in early:
    assert found.pop('head') == pytest.approx([-0.1] * 2, rel=1e-4)
    assert set(map(tuple, found.values())) == {(0, 0)}
  assert set(third) == {*DEPTHS, 'head'}
  for moved in third.values():
    assert moved == pytest.approx([-0.1] * 2, rel=1e-4)


@pytest.mark.parametrize(
  ('schedule', 'falls'),
  [
    ('constant', [1, 1, 1, 1]),
    ('linear', [1, 0.75, 0.5, 0.25]),
    ('cosine', [1, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4]),
  ],
)
def test_the_rate_rises_and_falls_in_all_layers(schedule, falls):
  settings = FinetuneSettings(
    learning_rate=0.1, layer_decay=0.5, schedule=schedule, warmup_steps=2
  )
  found = moves(settings, 6)
  for part, depth in DEPTHS.items():
    rates = [0.1 * 0.5**depth * share for share in [1 / 3, 2 / 3, *falls]]
    assert [-move[part][0] for move in found] == pytest.approx(rates, rel=1e-4)


def test_the_encoder_warms_up_when_the_head_has_had_its_epochs():
  settings = FinetuneSettings(
    learning_rate=0.1, warmup_steps=2, schedule='linear'
  )
  found = [-move['pooling'][0] for move in moves(settings, 8, head_steps=3)]
  assert found[:3] == [0, 0, 0]
  # Adam of a constant gradient, whose first steps are as long as its rate. The
  # decay is over the steps that are left.
  shares = [1 / 3, 2 / 3, 1, 2 / 3, 1 / 3]
  assert found[3:] == pytest.approx([0.1 * x for x in shares], rel=1e-3)


def test_a_warm_up_as_long_as_the_run_is_refused():
  settings = FinetuneSettings(warmup_steps=6)
  with pytest.raises(SettingsError, match='must be less than the number'):
    moves(settings, 6)


def test_without_rates_of_its_own_the_optimizer_is_the_plain_one():
  settings = with_defaults(FinetuneSettings())
  optimizer = tuning.make_optimizer(settings, ENCODER, num_steps=9)
  state = optimizer.init(params_of())
  assert jax.tree.structure(state[0].mu) == jax.tree.structure(params_of())


def test_rows_of_the_table_are_updated_at_its_rate(tmp_path, data_dir):
  settings = finetune_settings(
    tmp_path,
    data_dir,
    num_steps=1,
    table_update='rows',
    learning_rate=0.01,
    encoder_learning_rate=0.004,
    layer_decay=0.5,
  )
  _, _, before = start_of(settings)
  finetune.main(settings)
  _, params, _ = restore_encoder(tmp_path)
  moved = np.abs(params['item_embedding'] - before['table'])
  # The first step of Adam is as long as its rate, here two layers down; some
  # items are in no batch of 32 users.
  assert moved.max() == pytest.approx(0.004 * 0.5**2, rel=1e-3)
  assert 0 < np.mean(moved > 0.9 * moved.max()) < 1


@pytest.mark.parametrize(
  ('kind', 'changes', 'objective', 'weight'),
  [
    ('classification', {}, classification_objective, None),
    ('conversion', {'positive_weight': 3.0}, conversion_objective, 3.0),
    ('ranking', {}, ranking_objective, None),
    ('ranking', {'ranking_loss': 'softmax'}, softmax_ranking_objective, None),
  ],
)
def test_the_loss_is_that_of_the_task_and_the_flags(
  kind, changes, objective, weight
):
  data = UserData('made', {}, Vocabulary(()), kind)
  model = {'encoder': ENCODER, 'head': None}
  loss = tuning.training_loss(FinetuneSettings(**changes), data, model, AT_ONCE)
  assert loss.func == objective
  assert loss.keywords.get('positive_weight') == weight


def probed(folder, data_dir, **changes):
  """What the probe of a random encoder scores."""
  settings = finetune_settings(folder, data_dir, mode='probe', **changes)
  return finetune.main(settings)


def assert_same_auc(result, expected):
  for split in ('validation', 'test'):
    auc = pytest.approx(expected[split]['auc'], abs=1e-5)
    assert result[split]['auc'] == auc


def test_the_head_starts_as_the_probe(tmp_path, data_dir, monkeypatch):
  # Nothing is trained.
  monkeypatch.setattr(
    loop, '_take_steps', lambda run, state, *_: (state, False)
  )
  settings = finetune_settings(
    tmp_path / 'tuned', data_dir, head='probe', split_seed=3
  )
  result = finetune.main(settings)
  assert_same_auc(result, probed(tmp_path / 'probe', data_dir, split_seed=3))


# Two epochs of four batches each, of which the first is the head's.
HARM = {
  'num_epochs': 2,
  'head_epochs': 1,
  'head': 'probe',
  'learning_rate': 30.0,
  'checkpoint_every': 1,
  'keep_checkpoints': 9,
}


@pytest.fixture(scope='module')
def harmed(tmp_path_factory, data_dir):
  """A run whose steps only do harm: its folder, its result, that of a probe."""
  folder = tmp_path_factory.mktemp('harmed')
  same = {'kind': 'conversion', 'split_seed': 3, 'select_by': 'log_loss'}
  tuned = finetune_settings(folder / 'tuned', data_dir, **HARM, **same)
  result = finetune.main(tuned)
  return tuned.workdir, result, probed(folder / 'probe', data_dir, **same)


def test_the_best_epoch_is_no_worse_than_the_probe(harmed):
  folder, result, expected = harmed
  assert result['best_step'] == 0
  assert_same_auc(result, expected)
  found = {
    line['step']: line['validation_log_loss']
    for line in lines(folder)
    if 'validation_log_loss' in line
  }
  assert list(found) == [0, 4, 8]
  assert min(found.values()) == found[0]


def test_epochs_of_the_head_leave_the_encoder(harmed):
  folder, *_ = harmed
  states = [saved_state(folder, step)['params'] for step in (1, 4, 5)]
  first, fourth, fifth = (
    leaf_values([state['encoder'], state['table']]) for state in states
  )
  assert (first == fourth).all()
  assert (fourth != fifth).any()
  assert set(states[0]['head']) == {'output'}
  assert (
    leaf_values(states[0]['head']) != leaf_values(states[1]['head'])
  ).any()


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'with_bag': True}, '--with_bag is for --mode=probe, not full'),
    ({'probe_model': 'lightgbm'}, '--probe_model is for --mode=probe'),
    ({'mode': 'probe', 'head': 'probe'}, '--head is for --mode=full or frozen'),
    (
      {'mode': 'frozen', 'layer_decay': 0.5},
      '--layer_decay is for --mode=full',
    ),
    ({'mode': 'probe', 'head_epochs': 1}, '--head_epochs is for --mode=full'),
    (
      {'mode': 'frozen', 'encoder_learning_rate': 0.5},
      '--encoder_learning_rate is for --mode=full, not frozen',
    ),
    ({'layer_decay': 1.5}, '--layer_decay must be at most 1'),
    (
      {'head_epochs': 3, 'num_epochs': 3},
      '^--head_epochs=3 leaves none of the --num_epochs=3 for the encoder: ',
    ),
  ],
)
def test_flags_of_another_mode_are_refused(changes, words):
  with pytest.raises(SettingsError, match=words):
    with_defaults(FinetuneSettings(**changes))
