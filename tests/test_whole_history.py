"""Vectors of whole histories: the mean over windows."""

import dataclasses

import numpy as np
import pytest
from test_embed import EVENTS, KNOWN, read, settings
from test_similarity_command import ITEMS, save_run

from adaptssr_jax.checkpoint.encoders import restore_encoder
from adaptssr_jax.data import Ragged
from experiments import compare, embed, finetune
from experiments.comparison.commands import sources_of
from experiments.comparison.frozen import VectorSettings
from experiments.comparison.grid import Cell, Pretraining, Vectors, plan
from experiments.flags.binder import SettingsError
from experiments.flags.finetuning import with_defaults
from experiments.run.steps import means_of_windows
from tests.compare_stand_ins import (
  changed,
  flag_files,
  settings_of,
  stand_ins,
)
from tests.tiny_runs import finetune_settings

__all__ = ['settings', 'stand_ins']


@pytest.mark.parametrize('length', [1, 3, 4, 20])
def test_rows_are_split_into_few_even_parts(length):
  rows = Ragged.from_rows([range(n) for n in (*range(9), 0, 13)])
  parts, counts = rows.split(length)
  assert counts.tolist() == [max(1, -(-n // length)) for n in rows.lengths]
  first = 0
  for row, count in enumerate(counts):
    some = [parts[part] for part in range(first, first + count)]
    assert np.concatenate(some).tolist() == rows[row].tolist()
    sizes = [len(part) for part in some]
    assert max(sizes) <= length
    assert max(sizes) - min(sizes) <= 1
    first += count
  assert first == len(parts)


@pytest.mark.parametrize('size', [1, 2, 5, 100])
def test_means_do_not_depend_on_the_batches(size):
  rng = np.random.default_rng(0)
  counts = np.array([1, 3, 1, 1, 6, 2])
  lengths = rng.integers(1, 9, counts.sum())
  lengths[0] = 0
  vectors = rng.normal(size=(len(lengths), 4)).astype(np.float32)
  numbers = np.arange(len(lengths))
  batches = [
    (numbers[start : start + size], vectors[start : start + size])
    for start in range(0, len(lengths), size)
  ]
  found = list(means_of_windows(batches, lengths, counts, batch_size=4))
  # The same users are together, whatever the batches of windows.
  assert [len(rows) for rows, _ in found] == [4, 2]
  rows = np.concatenate([rows for rows, _ in found])
  assert rows.tolist() == list(range(len(counts)))
  user = np.repeat(rows, counts)
  expected = [
    np.average(
      vectors[user == row],
      axis=0,
      weights=np.maximum(lengths[user == row], 1),
    )
    for row in rows
  ]
  means = np.concatenate([means for _, means in found])
  assert means.dtype == np.float32
  np.testing.assert_allclose(means, expected, rtol=1e-5, atol=1e-6)
  # A user with one window has the vector of that window, to the bit.
  np.testing.assert_array_equal(means[2], vectors[4])


def test_the_vector_is_the_mean_over_windows(settings, tmp_path):
  last = dataclasses.replace(settings, output=str(tmp_path / 'last.npz'))
  ids, last = read(embed.main(last))
  whole = dataclasses.replace(
    settings, history='whole', output=str(tmp_path / 'whole.npz')
  )
  same, whole = read(embed.main(whole))
  assert same == ids
  encoder, params, known = restore_encoder(settings.pretrained)
  assert encoder.max_length == 6
  number = {item: row for row, item in enumerate(known, 1)}
  for row, user in enumerate(ids):
    items = [item for who, item, _ in EVENTS if who == user]
    history = [number.get(item, encoder.mask_id) for item in items]
    if len(history) <= 6:
      np.testing.assert_allclose(whole[row], last[row], atol=1e-6)
      continue
    # Seven behaviours are windows of three and four.
    half = len(history) // 2
    windows = history[:half], history[half:]
    vectors = [
      encoder.apply({'params': params}, np.array([window]))[0]
      for window in windows
    ]
    expected = np.average(vectors, axis=0, weights=[len(w) for w in windows])
    np.testing.assert_allclose(whole[row], expected, atol=1e-5)
    assert np.abs(whole[row] - last[row]).max() > 1e-3


def test_encoders_that_read_less_have_more_windows(settings, tmp_path):
  short = save_run(tmp_path / 'short', KNOWN, 1, max_length=2)
  whole = dataclasses.replace(settings, history='whole')
  found = [
    read(embed.main(dataclasses.replace(whole, **changes)))
    for changes in (
      {'output': str(tmp_path / 'long.npz')},
      {'output': str(tmp_path / 'short.npz'), 'pretrained': short},
      {'output': str(tmp_path / 'both.npz'), 'concatenate': (short,)},
    )
  ]
  (ids, long), (same, short), (again, both) = found
  assert ids == same == again
  np.testing.assert_allclose(both, np.hstack([long, short]), atol=1e-6)


def test_a_probe_reads_the_whole_history(data_dir, tmp_path):
  run = save_run(tmp_path / 'run', ITEMS, 0, max_length=3, embed_dim=8)
  probing = finetune_settings(
    tmp_path / 'last',
    data_dir,
    mode='probe',
    pretrained=run,
    learning_rate=None,
    dropout_rate=None,
  )
  whole = dataclasses.replace(
    probing, workdir=str(tmp_path / 'whole'), history='whole'
  )
  last, whole = finetune.main(probing), finetune.main(whole)
  assert (last['history'], whole['history']) == ('last', 'whole')
  assert last['test'] != whole['test']
  full = finetune.FinetuneSettings(pretrained=run, history='whole')
  with pytest.raises(SettingsError, match='--history is for --mode=probe'):
    with_defaults(full)


def test_a_comparison_has_rows_of_whole_histories(
  tmp_path, data_dir, stand_ins
):
  settings = settings_of(
    tmp_path,
    data_dir,
    tasks=('gender',),
    methods=('joint',),
    whole_history=('joint', 'sasrec'),
    concatenated=('joint_whole sasrec_whole',),
    modes=('frozen',),
    reference='joint',
    probe_splits=2,
    seeds=('7',),
    **flag_files(tmp_path),
  )
  made = plan(compare.read_grid(settings))
  kinds = [type(one) for one in made]
  counts = [kinds.count(kind) for kind in (Pretraining, Vectors, Cell)]
  assert counts == [2, 4, 8]
  compare.main(settings)
  encodings = [
    one for one in stand_ins.settings if isinstance(one, VectorSettings)
  ]
  assert [one.history for one in encodings] == ['last', *['whole'] * 3]
  runs = [(one.pretrained, *one.concatenate) for one in encodings]
  assert runs[0] == runs[1]
  assert runs[3] == runs[1] + runs[2]
  page = (tmp_path / 'compare' / 'results.md').read_text()
  assert '\n| Pooled items and AdaptSSR, whole history' in page
  with pytest.raises(SettingsError, match='whole_history: bag_svd is not pre-'):
    compare.main(changed(settings, whole_history=('bag_svd',)))
  with pytest.raises(SettingsError, match='the whole history of all or of no'):
    compare.main(changed(settings, concatenated=('joint_whole sasrec',)))


def test_seeds_of_a_method_are_concatenated(tmp_path, data_dir):
  settings = settings_of(
    tmp_path,
    data_dir,
    tasks=('gender',),
    methods=(),
    whole_history=('joint', 'sasrec'),
    concatenated=('joint_whole joint_whole sasrec_whole',),
    modes=('frozen',),
    seeds=('5', '6', '7'),
    **flag_files(tmp_path),
  )
  grid = compare.read_grid(settings)
  rows = [
    [(one.method, one.seed) for one in sources_of(grid, run)]
    for run in plan(grid)
    if isinstance(run, Vectors) and '_and_' in run.method
  ]
  assert rows == [
    [('joint', 5), ('joint', 6), ('sasrec', 5)],
    [('joint', 6), ('joint', 7), ('sasrec', 6)],
    [('joint', 7), ('joint', 5), ('sasrec', 7)],
  ]
