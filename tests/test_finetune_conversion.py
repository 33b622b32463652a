"""Fine-tuning on a conversion, a task with one rare class."""

import contextlib
import functools
import io
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics

from adaptssr_jax.encoder.model import TaskHead, UserEncoder
from adaptssr_jax.objectives.classification import conversion_objective
from adaptssr_jax.objectives.users import Encoding
from adaptssr_jax.table.lookup import encoder_params, model_params
from experiments import finetune
from tests.fine_tuned import logits_by_hand, predictions
from tests.random_params import drawn_params
from tests.tiny_runs import (
  assert_same_bits,
  finetune_settings,
  lines,
  saved_state,
)


@pytest.fixture(scope='module')
def converted(tmp_path_factory, data_dir):
  """A conversion run of a frozen encoder: settings, result, and its output."""
  settings = finetune_settings(
    tmp_path_factory.mktemp('conversion'),
    data_dir,
    kind='conversion',
    mode='frozen',
    weight_decay=0.1,
    num_epochs=2,
    positive_weight=5.0,
    select_by='log_loss',
  )
  with contextlib.redirect_stdout(io.StringIO()) as printed:
    result = finetune.main(settings)
  return settings, result, printed.getvalue()


def test_a_frozen_run_leaves_the_encoder_as_it_was(converted):
  settings, result, _ = converted
  data = finetune.open_task(settings)
  model_key, _ = jax.random.split(jax.random.key(0))
  _, before = finetune.make_model(settings, data, model_key)
  after = saved_state(settings.workdir, result['best_step'])['params']
  assert_same_bits(after['encoder'], before['encoder'])
  moved = jax.tree.map(lambda x, y: (x != y).any(), after, before)
  assert moved['head']['hidden']['kernel']


def test_scores_of_a_conversion_are_those_of_its_chances(converted):
  settings, result, _ = converted
  users = finetune.open_task(settings).splits['test']
  scores = logits_by_hand(settings, result['best_step'], users)[:, 0]
  saved = predictions(settings)
  np.testing.assert_allclose(saved['score'], scores, atol=1e-5)
  assert saved['label'].tolist() == users.label.tolist()
  chances = 1 / (1 + np.exp(-scores))
  expected = {
    'auc': metrics.roc_auc_score(users.label, scores),
    'log_loss': metrics.log_loss(users.label, chances),
    'predicted_rate': chances.mean(),
    'rate': users.label.mean(),
  }
  assert result['test'] == pytest.approx(expected, abs=1e-4)


def test_two_classes_can_be_taken_for_a_conversion(converted):
  settings, result, printed = converted
  found = [
    line['validation_log_loss']
    for line in lines(settings.workdir)
    if 'validation_log_loss' in line
  ]
  assert result['best_step'] == 4 * (1 + np.argmin(found))
  assert result['event'] == 'male'
  folder = pathlib.Path(settings.workdir)
  assert json.loads((folder / 'result.json').read_text()) == result
  label = finetune.open_task(settings).splits['train'].label.tolist()
  share = 100 * label.count(1) / len(label)
  assert 0 < share < 100
  assert f'event: male ({share:.3g} % of the training rows)\n' in printed


def test_conversion_loss_weighs_the_event():
  encoder = UserEncoder(
    num_items=9, max_length=4, embed_dim=4, num_layers=1, dropout_rate=0.0
  )
  head = TaskHead(num_outputs=1)
  rng = np.random.default_rng(0)
  batch = {
    'items': rng.integers(1, 10, (6, 4), dtype=np.int32),
    'label': np.array([1, 0, 0, 1, 0, 1], np.int32),
    'where': np.arange(6) < 5,
    'example_id': np.arange(6, dtype=np.int32),
  }
  key = jax.random.key(0)
  params = model_params(drawn_params(encoder, seed=0))
  params['head'] = head.init(key, jnp.ones((1, 4)))['params']
  objective = functools.partial(
    conversion_objective,
    encoding=Encoding(encoder),
    head=head,
    positive_weight=3.0,
  )

  @jax.jit
  def scores_and_loss(params, batch):
    users = encoder.apply({'params': encoder_params(params)}, batch['items'])
    scores = head.apply({'params': params['head']}, users)
    return scores, objective(params, batch, key)

  scores, (loss, _) = scores_and_loss(params, batch)
  expected = 0.0
  for score, label in zip(scores[:5, 0].tolist(), batch['label'], strict=False):
    chance = 1 / (1 + np.exp(-score))
    expected += -3 * np.log(chance) if label else -np.log(1 - chance)
  assert loss == pytest.approx(expected / 5, rel=1e-5)
