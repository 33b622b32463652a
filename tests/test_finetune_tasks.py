"""Fine-tuning on every kind of task, in all modes."""

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
from sklearn.linear_model import LogisticRegression

from adaptssr_jax.data import Ragged, UserArrays
from adaptssr_jax.encoder.model import TaskHead, UserEncoder
from adaptssr_jax.objectives.classification import conversion_objective
from adaptssr_jax.objectives.users import Encoding
from adaptssr_jax.table.lookup import encoder_params, model_params
from experiments import finetune
from experiments.finetuning.tasks import select_by
from experiments.flags.binder import SettingsError
from experiments.flags.finetuning import with_defaults
from experiments.probing import classifiers
from tests.fine_tuned import logits_by_hand, predictions, start_of
from tests.labelled_rows import rows_of, synthetic_clicks
from tests.random_params import drawn_params
from tests.tiny_runs import (
  Interruption,
  assert_same_bits,
  assert_same_run,
  finetune_settings,
  interrupt_at,
  lines,
  saved_state,
)

# 511 rows of click are of 193 users: 4 batches an epoch.
CLICK = {'task': 'click', 'batch_size': 64, 'num_epochs': 2}


# Rows of another split than the stored one.
RESPLIT = CLICK | {'split_seed': 3}


@pytest.fixture(scope='module')
def clicked(tmp_path_factory, data_dir):
  """The settings and the result of a ranking run."""
  folder = tmp_path_factory.mktemp('click') / 'run'
  settings = finetune_settings(folder, data_dir, **RESPLIT)
  return settings, finetune.main(settings)


def ranks_by_hand(settings, step, rows):
  """The place of the positive of each row, and whether rounding decides it."""
  users = UserArrays(None, Ragged.from_rows([items for _, items, *_ in rows]))
  ranks, unsure = [], []
  for (*_, own, others), scores in zip(
    rows, logits_by_hand(settings, step, users), strict=True
  ):
    ahead = np.delete(scores, [own, *others]) - scores[own]
    ranks.append(1 + (ahead > 0).sum() + (ahead == 0).sum() / 2)
    unsure.append((np.abs(ahead) < 1e-5).any())
  assert np.mean(unsure) < 0.05
  return np.array(ranks), np.array(unsure)


def test_a_ranking_is_that_of_rows_ranked_one_by_one(clicked):
  settings, result = clicked
  rows, numbers = synthetic_clicks(settings.split_seed)
  ranks, unsure = {}, {}
  for name in ('validation', 'test'):
    ranks[name], unsure[name] = ranks_by_hand(
      settings, result['best_step'], [rows[at] for at in numbers[name]]
    )
  saved = predictions(settings)
  sure = ~unsure['test']
  np.testing.assert_array_equal(saved['rank'][sure], ranks['test'][sure])
  np.testing.assert_array_equal(saved['example_id'], numbers['test'])
  assert set(result['test']) == {
    f'{name}@{k}' for name in ('hit_rate', 'mrr', 'ndcg') for k in (5, 10, 20)
  }
  # A number for each row, whatever rows were encoded together.
  exact = {'rel': 1e-3, 'abs': unsure['validation'].mean()}
  ranks['test'] = saved['rank']
  for name, places in ranks.items():
    inside = places <= 10
    gain = inside / np.log2(places + 1)
    assert result[name]['ndcg@10'] == pytest.approx(gain.mean(), **exact)
    assert result[name]['hit_rate@10'] == pytest.approx(inside.mean(), **exact)


def test_few_labels_are_so_many_rows_and_not_so_many_users(data_dir):
  settings = finetune_settings('unused', data_dir, **CLICK, train_users=100)
  data = finetune.open_task(settings)
  users = finetune.examples_of(settings, data).splits['train']
  assert users.num_rows == 100
  assert len(users.items) < 100
  assert [row[:3] for row in rows_of(users)] == [
    row[:3] for row in synthetic_clicks(0)[0][:100]
  ]


def test_the_best_epoch_of_a_ranking_is_that_of_ndcg_at_10(clicked):
  settings, result = clicked
  scores = {
    line['step']: line['validation_ndcg@10']
    for line in lines(settings.workdir)
    if 'validation_ndcg@10' in line
  }
  assert list(scores) == [4, 8]
  assert result['best_step'] == max(scores, key=scores.get)
  # All metrics may order two epochs alike.
  assert select_by(settings, finetune.open_task(settings)) == 'ndcg@10'


def test_an_interrupted_ranking_run_is_uninterrupted(
  clicked, tmp_path, data_dir, monkeypatch
):
  settings = finetune_settings(tmp_path, data_dir, **RESPLIT)
  with monkeypatch.context() as patch:
    interrupt_at(patch, 7)
    with pytest.raises(Interruption):
      finetune.main(settings)
  assert finetune.main(settings) == clicked[1]
  assert_same_run(tmp_path, clicked[0].workdir)
  found, expected = predictions(settings), predictions(clicked[0])
  assert_same_bits(found, expected)


@pytest.mark.parametrize('task', ['age', 'conversion'])
def test_a_probe_is_a_regression_on_frozen_vectors(tmp_path, data_dir, task):
  changes = {'task': task, 'mode': 'probe', 'split_seed': 3, 'train_users': 100}
  settings = finetune_settings(tmp_path, data_dir, **changes)
  result = finetune.main(settings)
  data, model, params = start_of(settings)
  vectors, labels = {}, {}
  for name, users in data.splits.items():
    rows = np.arange(100 if name == 'train' else len(users.items))
    items = jnp.asarray(users.items.padded(rows, 6))
    encode = jax.jit(model['encoder'].apply)
    encoded = encode({'params': encoder_params(params)}, items)
    vectors[name], labels[name] = np.asarray(encoded), users.label[rows]
  mean, scale = vectors['train'].mean(axis=0), vectors['train'].std(axis=0)
  scores = {}
  for strength in classifiers.STRENGTHS:
    fitted = LogisticRegression(C=strength, max_iter=1000)
    fitted.fit((vectors['train'] - mean) / scale, labels['train'])
    found = {}
    for name in ('validation', 'test'):
      inputs = (vectors[name] - mean) / scale
      if task == 'age':
        found[name] = fitted.score(inputs, labels[name])
      else:
        score = fitted.decision_function(inputs)
        found[name] = metrics.roc_auc_score(labels[name], score)
    scores[strength] = found
  best = max(scores, key=lambda c: round(scores[c]['validation'], 5))
  metric = 'accuracy' if task == 'age' else 'auc'
  assert result['C'] == best
  # Of seven classes there is no AUC.
  if task == 'age':
    assert set(result['test']) == {'accuracy', 'macro_f1'}
  for name in ('validation', 'test'):
    assert result[name][metric] == pytest.approx(scores[best][name], abs=2e-3)
  saved = predictions(settings)
  assert saved['example_id'].tolist() == data.splits['test'].number.tolist()
  assert sorted(saved['example_id']) != list(range(160, 200))
  with pytest.raises(SettingsError, match='--split_seed was 3, is 4'):
    finetune.main(
      finetune_settings(tmp_path, data_dir, **changes | {'split_seed': 4})
    )


@pytest.mark.parametrize(
  ('flags', 'chosen', 'word'),
  [
    ({'with_bag': True}, {'bag_weight', 'C'}, 'bag_weight'),
    ({'probe_model': 'lightgbm'}, {'trees'}, 'trees'),
  ],
)
def test_a_probe_reads_bags_too_or_by_trees(
  tmp_path, data_dir, capsys, flags, chosen, word
):
  settings = finetune_settings(
    tmp_path, data_dir, mode='probe', train_users=60, **flags
  )
  result = finetune.main(settings)
  about = {'task', 'pretrained', 'history', 'best_step'}
  assert {*result} == {*chosen, *about, 'validation', 'test'}
  logged = lines(tmp_path)
  best = max(logged, key=lambda line: line['validation_accuracy'])
  assert {name: best[name] for name in chosen} == {
    name: result[name] for name in chosen
  }
  assert len(logged) == {'bag_weight': 15, 'trees': 4}[word]
  assert f'a probe with {word} {result[word]:g}' in capsys.readouterr().out


def test_classes_are_written_as_logits_and_hits(tmp_path, data_dir):
  settings = finetune_settings(
    tmp_path, data_dir, num_steps=1, split_seed=1, window='last'
  )
  result = finetune.main(settings)
  users = finetune.open_task(settings).splits['test']
  saved = predictions(settings)
  logits = logits_by_hand(settings, 1, users)
  np.testing.assert_allclose(saved['logits'], logits, atol=1e-5)
  assert saved['example_id'].tolist() == users.number.tolist()
  hits = saved['logits'].argmax(axis=1) == users.label
  assert saved['correct'].tolist() == hits.tolist()
  assert result['test']['accuracy'] == pytest.approx(hits.mean())
  assert json.loads((tmp_path / 'result.json').read_text()) == result


@pytest.mark.parametrize(
  ('changes', 'expected'),
  [
    ({'task': 'age'}, (128, 2e-4, 0.5)),
    ({'task': 'life_status'}, (128, 1e-4, 0.5)),
    ({'task': 'click_by_user'}, (512, 5e-4, 0.5)),
    ({'task': 'thumb_up', 'mode': 'frozen'}, (128, 5e-4, 0.0)),
    ({'task': 'click', 'batch_size': 8, 'dropout_rate': 0.1}, (8, 5e-4, 0.1)),
    ({'learning_rate': 1.0}, (128, 1.0, 0.5)),
    # Somebody's own column of that name.
    ({'task': 'click', 'dataset': 'user_tables'}, (128, 2e-4, 0.5)),
  ],
)
def test_the_task_decides_what_no_flag_says(changes, expected):
  found = with_defaults(finetune.FinetuneSettings(**changes))
  assert found.num_epochs == 5
  assert (
    found.batch_size,
    found.learning_rate,
    found.dropout_rate,
  ) == expected


def test_training_is_not_told_which_targets_are_tested(data_dir):
  settings = finetune_settings('unused', data_dir, **CLICK)
  data = finetune.open_task(settings)
  examples = finetune.examples_of(settings, data).splits
  train, test = examples['train'], examples['test']
  own = {
    name: train.positives[row].tolist()
    for row, name in enumerate(train.user_ids(np.arange(len(train.items))))
  }
  held_out = 0
  for row, name in enumerate(test.user_ids(np.arange(len(test.items)))):
    # All positives are left out of a ranking, those to train on among them.
    assert set(own.get(name, ())) <= set(test.targets[row].tolist())
    held_out += len(set(test.positives[row]) - set(own.get(name, ())))
  assert held_out > 50
  for row in range(len(train.items)):
    # Of a user's positives, a negative may be any that is not trained on.
    assert sorted(train.targets[row]) == sorted(train.positives[row])


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
  _, _, before = start_of(settings)
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
