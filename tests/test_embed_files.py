"""Vectors as a command: new tables, the item table, and the nearest users."""

import dataclasses

import numpy as np
import pyarrow.parquet
import pytest
from test_embed import EVENTS, KNOWN, USERS, by_hand, read, written
from test_embed import settings as prepared
from test_similarity_command import save_run

from adaptssr_jax.checkpoint.encoders import restore_encoder
from adaptssr_jax.data import DataError
from experiments import embed
from experiments.embedding import neighbours
from experiments.flags.binder import SettingsError
from tests.tiny_runs import files
from tests.user_table_files import write

__all__ = ['prepared']


@pytest.fixture(scope='module')
def settings(prepared):
  """Of new tables, with nothing to write yet."""
  return dataclasses.replace(prepared, dataset='')


def read_neighbours(path):
  """Of a table: the users, their neighbours, and the cosines."""
  if path.suffix == '.npz':
    with np.load(path, allow_pickle=False) as arrays:
      return tuple(arrays[name].tolist() for name in NEIGHBOURS)
  table = pyarrow.parquet.read_table(path)
  assert table.column_names == list(NEIGHBOURS)
  return tuple(table[name].to_pylist() for name in NEIGHBOURS)


NEIGHBOURS = ('user_id', 'neighbour_id', 'similarity')


def test_new_tables_are_encoded_without_a_data_set(settings, tmp_path, capsys):
  ids, vectors = read(written(settings, tmp_path, output='users.parquet'))
  expected = by_hand(settings.pretrained)
  # In the order in which they first appear in the file.
  assert ids == list(expected) == USERS
  np.testing.assert_allclose(vectors, list(expected.values()), atol=1e-5)
  unknown = sum(item not in KNOWN for _, item, _ in EVENTS)
  told = capsys.readouterr().out
  assert f'{len(USERS)} users; the encoder does not know 2 of 9 items' in told
  assert "'été'" in told
  assert f'{unknown} of {len(EVENTS)} behaviours' in told
  assert [path.name for path in tmp_path.iterdir()] == ['users.parquet']


def test_of_tables_that_are_known_that_is_told(settings, tmp_path, capsys):
  events = [('anna', 'item 1', 0), ('bert', 'item 2', 0)]
  path = write(tmp_path / 'e.jsonl', events, ('who', 'what', 'when'))
  new = dataclasses.replace(settings, events=(str(path),))
  assert read(written(new, tmp_path, output='u.npz'))[0] == ['anna', 'bert']
  assert 'knows all 2 items' in capsys.readouterr().out


def test_without_flags_of_data_they_are_those_of_the_run(settings, tmp_path):
  data = dataclasses.replace(settings, dataset='user_tables')
  expected = read(written(data, tmp_path, output='expected.npz'))
  flags = data.flag_values() | {'labels': 'gone.csv', 'task': 'plan'}
  run = save_run(tmp_path / 'run', KNOWN, seed=0, flags=flags)
  alone = embed.EmbedSettings(
    pretrained=run, batch_size=16, buckets=2, microbatch=1
  )
  ids, vectors = read(written(alone, tmp_path, output='users.npz'))
  assert ids == expected[0]
  np.testing.assert_array_equal(vectors, expected[1])
  unsaid = dataclasses.replace(alone, pretrained=settings.pretrained)
  with pytest.raises(SettingsError, match=r'does not say .* --dataset=NAME'):
    written(unsaid, tmp_path, output='other.npz')


def test_a_run_that_knows_no_item_is_a_warning(settings, tmp_path, capsys):
  events = [(f'user {number}', '1', 0) for number in range(20)]
  path = write(tmp_path / 'e.csv', events, ('who', 'what', 'when'))
  new = dataclasses.replace(settings, events=(str(path),))
  for dataset in ('', 'user_tables'):
    of = dataclasses.replace(new, dataset=dataset)
    written(of, tmp_path, output=f'users_{dataset}.npz')
    told = capsys.readouterr().out
    assert 'WARNING: ' in told
    assert 'Are the item ids those of the data set of that run' in told


def test_the_item_table_by_raw_id(settings, tmp_path):
  _, params, _ = restore_encoder(settings.pretrained)
  expected = np.asarray(params['item_embedding'])[1:-1]
  assert written(settings, tmp_path, item_vectors='items.npz').exists()
  with np.load(tmp_path / 'items.npz', allow_pickle=False) as arrays:
    assert arrays['item_id'].tolist() == KNOWN
    np.testing.assert_array_equal(arrays['vector'], expected)
  # Nobody was encoded.
  assert [path.name for path in tmp_path.iterdir()] == ['items.npz']


def test_all_files_of_one_call(settings, tmp_path):
  written(
    settings,
    tmp_path,
    output='users.npz',
    item_vectors='items.parquet',
    neighbours=3,
    neighbours_output='near.npz',
  )
  users, vectors = read(tmp_path / 'users.npz')
  items = pyarrow.parquet.read_table(tmp_path / 'items.parquet')
  assert items.column_names == ['item_id', 'vector']
  assert items['item_id'].to_pylist() == KNOWN
  unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
  cosines = unit @ unit.T - 9 * np.eye(len(unit))
  ids, near, similarities = read_neighbours(tmp_path / 'near.npz')
  assert ids == users
  for row, (names, values) in enumerate(zip(near, similarities, strict=True)):
    places = [users.index(name) for name in names]
    np.testing.assert_allclose(values, np.sort(cosines[row])[:-4:-1], atol=1e-5)
    np.testing.assert_allclose(values, cosines[row, places], atol=1e-5)


def test_neighbours_alone_and_in_parquet(settings, tmp_path):
  path = written(
    settings, tmp_path, neighbours=2, neighbours_output='near.parquet'
  )
  ids, near, similarities = read_neighbours(path)
  assert ids == USERS
  assert np.shape(near) == np.shape(similarities) == (len(USERS), 2)
  assert all(user not in names for user, names in zip(ids, near, strict=True))


def test_neighbours_are_the_same_in_blocks_of_any_size(monkeypatch):
  vectors = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
  # Equal ones, and one of a user without behaviours.
  vectors[7] = vectors[31]
  vectors[20] = 0
  at_once = neighbours.nearest_users(vectors, count=5)
  monkeypatch.setattr(neighbours, '_QUERIES', 16)
  in_blocks = neighbours.nearest_users(vectors, count=5)
  np.testing.assert_array_equal(in_blocks[1], at_once[1])
  np.testing.assert_allclose(in_blocks[0], at_once[0], atol=1e-6)
  assert at_once[1][7][0] == 31
  np.testing.assert_array_equal(at_once[1][20], [0, 1, 2, 3, 4])
  np.testing.assert_array_equal(at_once[0][20], 0)


def test_a_user_with_several_rows_is_no_neighbour_of_itself(tmp_path):
  vectors = np.eye(3, dtype=np.float32)
  # Of the first row of 'a' both others are as near.
  pieces = [(['a', 'b'], vectors[:2]), (['a', 'c'], vectors[[2, 2]])]
  path = tmp_path / 'near.npz'
  neighbours.write_neighbours(path, pieces, count=2)
  ids, near, _ = read_neighbours(path)
  assert ids == ['a', 'b', 'c']
  assert near == [['b', 'c'], ['a', 'c'], ['a', 'b']]


@pytest.mark.parametrize('dataset', ['', 'user_tables'])
def test_parts_together_are_the_whole(settings, tmp_path, dataset):
  of = dataclasses.replace(settings, dataset=dataset)
  ids, vectors = read(written(of, tmp_path, output='all.npz'))
  parts = []
  for part in ('1/3', '2/3', '3/3'):
    mine = dataclasses.replace(of, part=part)
    parts.append(read(written(mine, tmp_path, output=f'{part[0]}.npz')))
  assert [len(part_ids) for part_ids, _ in parts] == [13, 13, 14]
  assert [user for part_ids, _ in parts for user in part_ids] == ids
  found = np.concatenate([part_vectors for _, part_vectors in parts])
  np.testing.assert_allclose(found, vectors, atol=1e-5)


@pytest.mark.parametrize('part', ['0/3', '4/3', '1/0', '2', 'a/b', '1/-3'])
def test_what_is_no_part_is_refused(part):
  with pytest.raises(SettingsError, match='--part must be I/N'):
    embed.EmbedSettings(part=part)


def test_neither_neighbours_nor_too_many_of_parts(settings, tmp_path):
  mine = dataclasses.replace(settings, part='1/2')
  with pytest.raises(SettingsError, match='leave it out, or --part'):
    written(mine, tmp_path, neighbours=2, neighbours_output='near.npz')
  mine = dataclasses.replace(settings, part='7/41')
  with pytest.raises(SettingsError, match='--part=7/41: there are only 40'):
    written(mine, tmp_path, output='users.npz')
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'neighbours': 2}, 'both --neighbours=K and --neighbours_output'),
    ({'neighbours_output': 'near.npz'}, 'both --neighbours=K'),
    (
      # Before any file is written.
      {
        'neighbours': 40,
        'neighbours_output': 'near.npz',
        'output': 'users.npz',
        'item_vectors': 'items.npz',
      },
      '--neighbours=40 is too many: there are 40 users',
    ),
    ({'pretrained': ''}, '--pretrained=DIR'),
    ({'output': ''}, r'--output=.*\.parquet or \.npz'),
    ({'output': 'users.csv'}, r'users\.csv: .*\.parquet or \.npz'),
    ({'output': '/nowhere/users.npz'}, 'no folder /nowhere'),
    ({'item_vectors': 'items.csv'}, r'--item_vectors=.*\.parquet or \.npz'),
    (
      {'output': 'u.npz', 'dataset': 'user_tables', 'split': 'test'},
      '--split=test.*all, train, validation',
    ),
    ({'output': 'users.npz', 'batch_size': 12}, '--batch_size.*8 or 16'),
    (
      {'output': 'same.npz', 'item_vectors': 'same.npz'},
      '--output and --item_vectors must be different',
    ),
  ],
)
def test_flags_that_do_not_fit_are_refused(
  settings, tmp_path, changes, message
):
  with pytest.raises(SettingsError, match=message):
    written(settings, tmp_path, **changes)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', ['labels', 'task', 'split'])
def test_what_new_tables_have_not_is_refused(settings, tmp_path, name):
  asking = dataclasses.replace(settings, **{name: 'test'})
  with pytest.raises(SettingsError, match=f'--{name} is for a prepared'):
    written(asking, tmp_path, output='users.npz')
  assert not list(tmp_path.iterdir())


def test_a_wrong_row_is_told_by_its_line_and_leaves_nothing(settings, tmp_path):
  path = tmp_path / 'e.csv'
  path.write_text('who,what,when\nanna,hat,1\nanna,,2\n')
  wrong = dataclasses.replace(settings, events=(str(path),))
  with pytest.raises(
    DataError, match=r"e\.csv, line 3: column 'what' is empty"
  ):
    written(wrong, tmp_path, output='users.npz')
  assert list(files(tmp_path)) == ['e.csv']


@pytest.mark.parametrize(
  'flag', ['output', 'item_vectors', 'neighbours_output']
)
def test_no_file_is_overwritten(settings, tmp_path, flag):
  (tmp_path / 'mine.npz').write_text('mine')
  changes = {'neighbours': 1, 'neighbours_output': 'near.npz'}
  changes |= {flag: 'mine.npz'}
  with pytest.raises(SettingsError, match=rf'--{flag}=.*mine\.npz exists'):
    written(settings, tmp_path, **changes)
  assert files(tmp_path) == {'mine.npz': b'mine'}
