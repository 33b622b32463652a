"""Vectors of users as a command: their users, and the files it leaves."""

import collections
import dataclasses

import jax
import numpy as np
import pyarrow.parquet
import pytest
from test_similarity_command import save_run

from adaptssr_jax.checkpoint.encoders import restore_encoder, restore_model
from adaptssr_jax.checkpoint.files import CheckpointError
from adaptssr_jax.data import Ragged, UserArrays
from experiments import embed
from experiments.flags.binder import SettingsError
from experiments.run import vector_files
from experiments.run.data import open_data
from experiments.run.encoder import Source, with_items
from tests.labelled_rows import rows_of
from tests.tiny_runs import start
from tests.user_table_files import write

KNOWN = [f'item {number}' for number in range(9)]
ITEMS = [*KNOWN[5:], 'new', *KNOWN[:3], 'été']
USERS = ['anna', '日本', '7', '007', *(f'u{number}' for number in range(36))]
_DRAWN = np.random.default_rng(0).integers(len(ITEMS), size=(len(USERS), 9))
# Some have more behaviours than the 6 that the encoder sees.
EVENTS = [
  (user, ITEMS[_DRAWN[row, place]], place)
  for row, user in enumerate(USERS)
  for place in range(2 + row % 8)
]


@pytest.fixture(scope='module')
def settings(tmp_path_factory, data_dir):
  """Of tables with text ids, two items of which the encoder does not know."""
  folder = tmp_path_factory.mktemp('embed')
  return embed.EmbedSettings(
    pretrained=save_run(folder / 'run', KNOWN, seed=0),
    dataset='user_tables',
    data_dir=data_dir,
    events=(str(write(folder / 'e.csv', EVENTS, ('who', 'what', 'when'))),),
    user_column='who',
    item_column='what',
    time_column='when',
    batch_size=16,
    buckets=2,
    microbatch=1,
  )


@pytest.fixture(scope='module')
def table(settings, tmp_path_factory):
  """The Parquet file that the command writes, as two columns."""
  folder = tmp_path_factory.mktemp('table')
  return read(written(settings, folder, output='users.parquet'))


def read(path):
  if path.suffix == '.npz':
    with np.load(path, allow_pickle=False) as arrays:
      return arrays['user_id'].tolist(), arrays['vector']
  columns = pyarrow.parquet.read_table(path)
  assert columns.column_names == ['user_id', 'vector']
  vectors = columns['vector'].combine_chunks()
  vectors = vectors.flatten().to_numpy().reshape(len(columns), -1)
  return columns['user_id'].to_pylist(), vectors


def changed(settings, tmp_path, **changes):
  """Other settings; the names of files are those of files in the folder."""
  for name in ('output', 'item_vectors', 'neighbours_output'):
    if changes.get(name):
      changes[name] = str(tmp_path / changes[name])
  return dataclasses.replace(settings, **changes)


def written(settings, tmp_path, **changes):
  """The first file that the command writes into the folder."""
  return embed.main(changed(settings, tmp_path, **changes))


def by_hand(source):
  """The vector of each user, without tables, batches, buckets and devices."""
  encoder, params, known = restore_encoder(source)
  number = {item: row for row, item in enumerate(known, 1)}
  histories = collections.defaultdict(list)
  for user, item, _ in EVENTS:
    histories[user].append(number.get(item, encoder.mask_id))
  items = np.zeros((len(histories), 6), np.int32)
  for row, history in zip(items, histories.values(), strict=True):
    row[: len(history)] = history[-6:]
  vectors = jax.jit(encoder.apply)({'params': params}, items)
  return dict(zip(histories, vectors, strict=True))


def test_vectors_are_those_of_the_encoder_and_stand_by_their_ids(
  settings, table
):
  ids, vectors = table
  expected = by_hand(settings.pretrained)
  assert sorted(ids) == sorted(USERS)
  assert (vectors.dtype, vectors.shape) == (np.float32, (len(USERS), 8))
  for user, vector in zip(ids, vectors, strict=True):
    np.testing.assert_allclose(vector, expected[user], atol=1e-5)
  # Or else it would not matter whose is whose.
  distances = np.linalg.norm(vectors[:, None] - vectors, axis=2)
  distances += np.eye(len(USERS))
  assert np.median(distances.min(axis=1)) > 1e-2


def test_rows_are_in_the_order_of_the_splits(settings, table):
  splits = open_data(settings, task='pretrain').splits
  assert list(splits) == ['train', 'validation']
  expected = [
    user
    for split in splits.values()
    for user in split.user_ids(np.arange(len(split.items)))
  ]
  assert table[0] == expected


def test_both_formats_hold_the_same_of_any_batches(settings, table, tmp_path):
  sizes = {'batch_size': 64, 'buckets': 1, 'microbatch': 0}
  ids, vectors = read(written(settings, tmp_path, output='users.npz', **sizes))
  assert ids == table[0]
  assert vectors.dtype == np.float32
  np.testing.assert_allclose(vectors, table[1], atol=1e-5)


@pytest.mark.slow
def test_one_device_gives_what_eight_do(settings, table, tmp_path, monkeypatch):
  monkeypatch.setenv('JAX_NUM_CPU_DEVICES', '1')
  alone = changed(settings, tmp_path, output='users.parquet')
  process = start('embed', alone)
  told, _ = process.communicate()
  assert process.returncode == 0, told
  assert 'knows 7 of 9 items' in told
  assert f'encoded {len(USERS)} users' in told
  ids, vectors = read(tmp_path / 'users.parquet')
  assert ids == table[0]
  np.testing.assert_allclose(vectors, table[1], atol=1e-5)


def test_a_split_alone(settings, table, tmp_path):
  ids, vectors = read(
    written(settings, tmp_path, output='users.npz', split='validation')
  )
  assert ids == table[0][-len(ids) :]
  assert len(ids) == 4
  np.testing.assert_allclose(vectors, table[1][-4:], atol=1e-5)


def test_in_bfloat16_vectors_are_of_float32_and_coarser(
  settings, table, tmp_path
):
  ids, vectors = read(
    written(settings, tmp_path, output='users.npz', dtype='bfloat16')
  )
  assert ids == table[0]
  assert vectors.dtype == np.float32
  error = np.abs(vectors - table[1]).max() / np.abs(table[1]).max()
  assert 1e-5 < error < 0.1


def test_users_without_behaviours_are_zeros(settings):
  encoder, params, _ = restore_model(settings.pretrained)
  users = UserArrays(
    Ragged.from_rows([list(b'none'), list(b'some'), list(b'no')], np.uint8),
    Ragged.from_rows([[], [3, 1], []]),
  )
  ((ids, vectors),) = embed.embedded(settings, [users], [(encoder, params)])
  assert ids == ['none', 'some', 'no']
  np.testing.assert_array_equal(vectors[[0, 2]], 0)
  assert np.abs(vectors[1]).max() > 0.1


def test_an_unknown_item_has_the_same_vector_in_every_data_set(settings):
  encoder, params, known = restore_model(settings.pretrained)
  mask = np.asarray(params['table'])[-1]
  for items in (['new', *known], [known[4], 'newer', 'new']):
    source = Source('here', encoder, params, known)
    wider, found = with_items(source, items)
    rows = np.asarray(found['table'])
    assert rows.shape == (wider.num_items + 2, 8)
    np.testing.assert_array_equal(rows[1 + items.index('new')], mask)
    expected = np.asarray(params['table'])[1 + 4]
    np.testing.assert_array_equal(rows[1 + items.index(known[4])], expected)


def test_of_a_ranking_task_a_user_has_one_row(settings, tmp_path):
  ranking = changed(
    settings,
    tmp_path,
    output='users.npz',
    dataset='synthetic_users/tiny',
    events=(),
    user_column='user_id',
    item_column='item_id',
    time_column='time',
    task='click',
    split='test',
  )
  ids, _ = read(embed.main(ranking))
  rows = rows_of(open_data(ranking, task='click').splits['test'])
  assert len(ids) < len(rows)
  assert ids == list(dict.fromkeys(user for user, *_ in rows))


def test_a_table_has_few_row_groups(tmp_path, monkeypatch):
  monkeypatch.setattr(vector_files, '_GROUP', 5)
  pieces = [([str(row)] * 2, np.full((2, 3), row, 'f4')) for row in range(7)]
  path = tmp_path / 'users.parquet'
  vector_files.write_vectors(path, pieces, (14, 3))
  with pyarrow.parquet.ParquetFile(path) as file:
    groups = range(file.num_row_groups)
    sizes = [file.metadata.row_group(group).num_rows for group in groups]
  assert sizes == [6, 6, 2]
  ids, vectors = read(path)
  assert ids == [str(row) for row in range(7) for _ in range(2)]
  np.testing.assert_array_equal(vectors[:, 2], np.repeat(np.arange(7), 2))


def broken_pieces(path, error):
  """The first piece, and then what goes wrong."""
  yield ['anna'], np.ones((1, 2), np.float32)
  if error:
    raise error
  path.write_text('of somebody else')


@pytest.mark.parametrize('suffix', ['.parquet', '.npz'])
def test_nothing_is_left_of_a_file_that_could_not_be_finished(tmp_path, suffix):
  path = tmp_path / f'users{suffix}'
  pieces = broken_pieces(path, KeyboardInterrupt())
  with pytest.raises(KeyboardInterrupt):
    vector_files.write_vectors(path, pieces, (2, 2))
  pieces = broken_pieces(path, OSError(28, 'No space left on device'))
  with pytest.raises(SettingsError, match=r'users\..*No space left'):
    vector_files.write_vectors(path, pieces, (2, 2))
  assert not list(tmp_path.iterdir())


def test_a_file_that_came_meanwhile_is_kept_and_so_are_the_vectors(tmp_path):
  path = tmp_path / 'users.npz'
  with pytest.raises(
    SettingsError, match=r'process in the meantime: .*users\.\d+\.npz'
  ):
    vector_files.write_vectors(path, broken_pieces(path, None), (1, 2))
  assert path.read_text() == 'of somebody else'
  (other,) = [file for file in tmp_path.iterdir() if file != path]
  with np.load(other, allow_pickle=False) as arrays:
    assert arrays['user_id'].tolist() == ['anna']
    np.testing.assert_array_equal(arrays['vector'], np.ones((1, 2)))


def test_a_split_of_no_data_set_is_refused():
  with pytest.raises(SettingsError, match=r"--split must be all.*'holdout'"):
    embed.EmbedSettings(split='holdout')


def test_without_a_checkpoint_nothing_is_prepared(settings, tmp_path):
  (tmp_path / 'empty').mkdir()
  for name, message in (('empty', 'no checkpoint'), ('gone', 'no such')):
    with pytest.raises(CheckpointError, match=message):
      written(
        settings,
        tmp_path,
        output='users.npz',
        pretrained=str(tmp_path / name),
        data_dir=str(tmp_path / 'data'),
      )
  assert [path.name for path in tmp_path.iterdir()] == ['empty']


@pytest.mark.parametrize('below', ['', 'checkpoints', 'checkpoints/120'])
def test_compiled_programs_lie_beside_the_run(below):
  settings = embed.EmbedSettings(pretrained=f'/runs/a/{below}')
  assert settings.workdir == '/runs/a'


def test_there_is_no_flag_for_what_is_not_trained(settings):
  assert 'table_update' not in settings.flag_values()
