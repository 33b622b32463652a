"""The similarity figure as a command: its numbers, files and errors."""

import dataclasses
import errno
import functools
import json
import os
import pathlib

import jax
import numpy as np
import optax
import pytest
from matplotlib.figure import Figure

from adaptssr_jax.checkpoint.checkpoints import Checkpoints
from adaptssr_jax.checkpoint.encoders import restore_encoder
from adaptssr_jax.checkpoint.files import CheckpointError
from adaptssr_jax.checkpoint.items import describe
from adaptssr_jax.data import UserArrays
from adaptssr_jax.data.ragged import Ragged
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.table.lookup import model_params
from adaptssr_jax.training.step import init_state
from experiments import similarity
from experiments.flags.binder import SettingsError, from_flagfile
from experiments.pretraining.context import make_augmentations
from experiments.run.data import open_data
from experiments.run.pictures import draw_similarities, save
from tests.random_params import drawn_params
from tests.tiny_runs import PLAIN, files

KINDS = ['dropout', 'crop', 'mask', 'reorder', 'other']
ITEMS = [f'item_{number}' for number in range(1, 61)]
# Of the 20 validation users; the second batch is a part of one.
USERS = 20


def save_run(
  folder, items, seed, *, flags=None, max_length=6, embed_dim=8, **fields
):
  """What a run leaves of its encoder."""
  encoder = UserEncoder(
    num_items=len(items),
    max_length=max_length,
    embed_dim=embed_dim,
    num_layers=1,
    **fields,
  )
  params = drawn_params(encoder, seed)
  run = Checkpoints(folder, keep=1)
  state = init_state(model_params(params), optax.sgd(1.0))
  run.save(state, describe(encoder, items, flags=flags or {}))
  run.close()
  return str(folder)


@pytest.fixture(scope='module')
def settings(tmp_path_factory, data_dir):
  """Of two methods; the second knows the items in another order."""
  folder = tmp_path_factory.mktemp('similarity')
  return similarity.SimilaritySettings(
    checkpoints=(
      save_run(folder / 'first', ITEMS, 0),
      save_run(folder / 'second', ITEMS[::-1], 1),
    ),
    # It is not a formula.
    names=('One', r'The $\other$'),
    dataset='synthetic_users/tiny',
    data_dir=data_dir,
    workdir=str(folder / 'figure'),
    batch_size=16,
    seed=3,
    **PLAIN,
  )


@pytest.fixture(scope='module')
def result(settings):
  return similarity.main(settings)


@pytest.fixture(scope='module')
def values(settings, result):
  """The arrays of `similarity.npz`, read without pickles."""
  with np.load(f'{settings.workdir}/similarity.npz') as arrays:
    return dict(arrays)


def changed(settings, tmp_path, **changes):
  fields = {'workdir': str(tmp_path / 'figure')} | changes
  return dataclasses.replace(settings, **fields)


def cosine(a, b):
  a, b = np.asarray(a, float), np.asarray(b, float)
  return np.sum(a * b, -1) / np.sqrt(np.sum(a**2, -1) * np.sum(b**2, -1))


def test_a_run_leaves_its_folder(settings, result):
  written = files(settings.workdir)
  assert set(written) == {
    'flags.txt',
    'similarity.json',
    'similarity.npz',
    'similarity.png',
  }
  assert json.loads(written['similarity.json']) == result
  picture = written['similarity.png']
  assert picture.startswith(b'\x89PNG\r\n\x1a\n')
  assert picture.rstrip().endswith(b'IEND\xaeB`\x82')
  width, height = np.frombuffer(picture[16:24], '>u4')
  assert width > height > 300
  flags = f'{settings.workdir}/flags.txt'
  assert from_flagfile(similarity.SimilaritySettings, flags) == settings


def test_every_user_counts_once_and_in_order(settings, result, values):
  users = open_data(settings, task='pretrain').splits['validation']
  assert result['users'] == len(users.items) == USERS
  assert list(values['user_id']) == users.user_ids(np.arange(USERS))
  assert list(values['method']) == list(result['methods'])
  assert tuple(values['method']) == settings.names
  assert list(values) == ['method', 'user_id', *KINDS]
  for kind in KINDS:
    assert values[kind].shape == (2, USERS)
    # No two users or methods are alike, so none is counted twice.
    assert len(np.unique(values[kind])) == 2 * USERS


def test_summaries_are_those_of_the_values(result, values):
  edges = np.array(result['edges'])
  assert (edges[0], edges[-1]) == (-1, 1)
  for row, kinds in enumerate(result['methods'].values()):
    assert list(kinds) == KINDS
    for kind, summary in kinds.items():
      column = np.sort(values[kind][row].astype(float))
      assert summary['count'] == sum(summary['histogram']) == USERS
      np.testing.assert_allclose(summary['mean'], sum(column) / USERS)
      deviation = np.sqrt(sum((column - summary['mean']) ** 2) / USERS)
      np.testing.assert_allclose(summary['std'], deviation)
      # Of twenty values the median lies between the tenth and the eleventh.
      np.testing.assert_allclose(
        summary['quantiles']['50'], (column[9] + column[10]) / 2
      )
      for bin_, count in enumerate(summary['histogram']):
        low, high = edges[bin_ : bin_ + 2]
        assert count == sum(low <= value < high for value in column)


def opened(settings, source):
  """The encoder, its parameters, and the users in its own item numbers."""
  data = open_data(settings, task='pretrain')
  encoder, params, known = restore_encoder(source)
  number = {name: place for place, name in enumerate(known, 1)}
  table = np.array([0] + [number[name] for name in data.vocabulary.items])
  items = data.splits['validation'].items.padded(np.arange(USERS), 6)
  return encoder, params, table[items]


@functools.partial(jax.jit, static_argnums=0)
def vector(encoder, params, items, key):
  """Of one user, under dropout."""
  return encoder.apply(
    {'params': params}, items[None], deterministic=False, keys=key[None]
  )[0]


def own_vectors(settings, encoder, params, items, row, count):
  """The first vectors of one user: one at a time, without devices."""
  _, user_key, _ = jax.random.split(jax.random.key(settings.seed), 3)
  view_key, dropout_key = jax.random.split(jax.random.fold_in(user_key, row))
  augmentations = make_augmentations(settings, encoder.mask_id).values()
  views = [items[row], items[row]] + [
    augmentation(key, items[row])
    for augmentation, key in zip(
      augmentations, jax.random.split(view_key, 5)[2:], strict=True
    )
  ]
  keys = jax.random.split(dropout_key, 5)[:count]
  return [
    vector(encoder, params, np.asarray(view), key)
    for view, key in zip(views, keys, strict=False)
  ]


@pytest.mark.parametrize('method', [0, 1])
def test_values_are_those_computed_by_hand(settings, values, method):
  # The last user, who is in the padded batch.
  row = USERS - 1
  source = settings.checkpoints[method]
  run = opened(settings, source)
  original, *views = own_vectors(settings, *run, row=row, count=5)
  for kind, view in zip(KINDS[:4], views, strict=True):
    np.testing.assert_allclose(
      values[kind][method, row], cosine(original, view), atol=1e-5
    )


def test_every_user_is_the_other_one_once():
  rng = np.random.default_rng(0)
  vectors = rng.normal(size=(9, 4)).astype(np.float32)
  vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
  found = similarity.with_other_users(vectors, jax.random.key(0))
  partners = []
  for row, value in enumerate(found):
    cosines = [cosine(vectors[row], other) for other in vectors]
    off = np.abs(cosines - value)
    assert off.min() < 1e-5
    partners.append(off.argmin())
  assert sorted(partners) == list(range(9))
  assert not np.any(np.array(partners) == np.arange(9))
  # Not simply the neighbour in the file, who may be alike.
  assert partners != list(np.roll(np.arange(9), 1))


def test_the_original_is_what_other_users_are_compared_by(settings, values):
  run = opened(settings, settings.checkpoints[0])
  vectors = np.array(
    [own_vectors(settings, *run, row=row, count=1)[0] for row in range(USERS)]
  )
  table = cosine(vectors[:, None], vectors[None])
  np.fill_diagonal(table, np.inf)
  nearest = np.abs(table - values['other'][0][:, None]).min(axis=1)
  np.testing.assert_allclose(nearest, 0, atol=1e-5)


def test_without_dropout_two_passes_are_the_same(settings, tmp_path):
  found = similarity.main(
    changed(
      settings,
      tmp_path,
      dropout_rate=0.0,
      checkpoints=settings.checkpoints[:1],
      names=('None',),
    )
  )
  kinds = found['methods']['None']
  for value in kinds['dropout']['quantiles'].values():
    assert value == pytest.approx(1, abs=1e-6)
  assert kinds['mask']['mean'] < 0.99


def test_same_flags_same_bits(settings, result):
  expected = files(settings.workdir)
  # Though the run that wrote them had one flag less.
  path = pathlib.Path(settings.workdir) / 'flags.txt'
  flags = path.read_text().splitlines(keepends=True)
  path.write_text(''.join(x for x in flags if '--crop_ratio' not in x))
  similarity.main(settings)
  assert files(settings.workdir) == expected


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'checkpoints': (), 'names': ()}, '--checkpoints=DIR'),
    ({'names': ('one',)}, '--names has 1, --checkpoints has 2'),
    ({'names': ('same', 'same')}, 'the same name'),
    ({'batch_size': 12}, '--batch_size.*8 or 16'),
  ],
)
def test_flags_that_do_not_fit_are_refused(
  settings, tmp_path, changes, message
):
  with pytest.raises(SettingsError, match=message):
    similarity.main(changed(settings, tmp_path, **changes))


def test_a_checkpoint_that_is_not_there_is_named_first(settings, tmp_path):
  sources = (settings.checkpoints[0], str(tmp_path / 'nothing'))
  with pytest.raises(CheckpointError, match='nothing'):
    similarity.main(changed(settings, tmp_path, checkpoints=sources))
  assert not (tmp_path / 'figure').exists()


def test_names_are_those_of_the_folders(settings):
  unnamed = dataclasses.replace(settings, names=())
  assert similarity.names_of(unnamed) == ('first', 'second')


def full_disk(file, *arguments, **named):
  pathlib.Path(file).touch()
  raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file)


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
  (tmp_path / 'similarity.npz').write_text('values')
  (tmp_path / 'similarity.png').write_text('picture')
  before = files(tmp_path)
  methods = {'a': {'other': {'histogram': [1] * 2}}}
  rows = Ragged.from_rows([[1]], np.uint8)
  users = UserArrays(rows, rows)
  monkeypatch.setattr(pathlib.Path, 'write_bytes', full_disk)
  monkeypatch.setattr(Figure, 'savefig', lambda _, *a, **k: full_disk(*a, **k))
  told = f'^--workdir={tmp_path} cannot be written .*: make room'
  with pytest.raises(SettingsError, match=told):
    similarity.save_values(
      tmp_path / 'similarity.npz', {'a': {'other': np.ones(1)}}, users
    )
  with pytest.raises(SettingsError, match=told):
    save(draw_similarities(methods, [-1, 0, 1]), tmp_path / 'similarity')
  assert files(tmp_path) == before


def test_other_things_in_the_folder_are_kept(settings, result, tmp_path):
  before = files(settings.workdir)
  with pytest.raises(
    SettingsError, match=r'--mask_ratio was .*; --seed was 3, is 4'
  ):
    similarity.main(dataclasses.replace(settings, seed=4, mask_ratio=0.5))
  assert files(settings.workdir) == before
  (tmp_path / 'notes').write_text('mine')
  with pytest.raises(SettingsError, match='holds files'):
    similarity.main(dataclasses.replace(settings, workdir=str(tmp_path)))
  assert files(tmp_path) == {'notes': b'mine'}
