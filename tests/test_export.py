"""An exported encoder: the files of its folder, and that it encodes alone."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import jax
import jaxtyping
import numpy as np
import pytest
import safetensors.numpy
from test_similarity_command import save_run

from adaptssr_jax.checkpoint.encoders import restore_encoder, save_encoder
from adaptssr_jax.checkpoint.files import CheckpointError
from adaptssr_jax.encoder.model import UserEncoder
from experiments import embed, export
from experiments.flags.binder import SettingsError
from experiments.run.workdir import commit
from tests.random_params import drawn_params
from tests.tiny_runs import files
from tests.user_table_files import COLUMNS, write

ITEMS = [*(f'item {number}' for number in range(8)), 'été\n']
HISTORIES = {
  'one': ['item 3'],
  'unknown': ['new', 'item 1', 'newer'],
  'long': [f'item {number % 8}' for number in range(19)],
  'odd': ['été\n', 'item 0', 'item 0'],
  'only unknown': ['new'],
}
# Nothing of the code base, nor of what it is built on, may be there.
ALONE = """
import json, sys
class Refuse:
  def find_spec(self, name, path=None, target=None):
    if name.partition('.')[0] in {
      'adaptssr_jax', 'experiments', 'flax', 'optax', 'orbax', 'safetensors',
      'tensorflow_datasets',
    }:
      raise ImportError(name)
sys.meta_path.insert(0, Refuse())
folder, flatbuffers, out = sys.argv[1:]
# After all others: for where it is not installed beside JAX.
sys.path += [folder, flatbuffers]
import numpy as np
from load import Encoder
np.save(out, Encoder()(json.load(sys.stdin)))
"""


@pytest.fixture(scope='module', autouse=True)
def unchecked_shapes():
  """jaxtyping does not know that a free length may broadcast."""
  jaxtyping.config.update('jaxtyping_disable', True)
  yield
  jaxtyping.config.update('jaxtyping_disable', False)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  return save_run(tmp_path_factory.mktemp('export') / 'run', ITEMS, seed=0)


def exported(run, output, **changes):
  """The folder that the command writes."""
  return export.main(
    export.ExportSettings(pretrained=str(run), output=str(output), **changes)
  )


@pytest.fixture(scope='module')
def folder(run):
  return exported(run, pathlib.Path(run).with_name('deployed'))


def loader_of(folder):
  spec = importlib.util.spec_from_file_location('load', folder / 'load.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.Encoder()


def alone(folder, histories, tmp_path):
  """The vectors that a program gives which has nothing but the folder."""
  flatbuffers = pathlib.Path(importlib.util.find_spec('flatbuffers').origin)
  command = [sys.executable, '-I', '-c', ALONE, str(folder)]
  command += [str(flatbuffers.parent.parent), str(tmp_path / 'out.npy')]
  done = subprocess.run(
    command, input=json.dumps(histories), capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  return np.load(tmp_path / 'out.npy')


def embedded(run, histories, tmp_path, **changes):
  """The vectors of users by embed, by user."""
  events = [
    (user, item, place)
    for user, history in histories.items()
    for place, item in enumerate(history)
  ]
  settings = embed.EmbedSettings(
    pretrained=run,
    output=str(tmp_path / 'users.npz'),
    events=(str(write(tmp_path / 'e.parquet', events, COLUMNS)),),
    batch_size=8,
    buckets=2,
    **changes,
  )
  with np.load(embed.main(settings)) as arrays:
    return dict(zip(arrays['user_id'], arrays['vector'], strict=True))


def test_alone_it_gives_what_embed_does(run, folder, tmp_path):
  expected = embedded(run, HISTORIES, tmp_path)
  vectors = alone(folder, [*HISTORIES.values(), []], tmp_path)
  assert (vectors.dtype, vectors.shape) == (np.float32, (6, 8))
  for user, vector in zip(HISTORIES, vectors, strict=False):
    np.testing.assert_allclose(vector, expected[user], atol=1e-6)
  np.testing.assert_array_equal(vectors[-1], 0)


def test_the_whole_history_is_encoded_as_embed_does(run, tmp_path):
  history = [ITEMS[place % 5] for place in range(23)]
  whole = loader_of(exported(run, tmp_path / 'deployed', history='whole'))
  found = whole([history, [], history[:3]])
  expected = embedded(run, {'u': history}, tmp_path, history='whole')
  np.testing.assert_allclose(found[0], expected['u'], atol=1e-6)
  few = loader_of(tmp_path / 'deployed')
  type(few).__call__.__globals__['_MOST_WINDOWS'] = 2
  np.testing.assert_allclose(few([history, [], history[:3]]), found, atol=1e-6)
  last = loader_of(tmp_path / 'deployed')
  last.history = 'last'
  assert np.abs(found[0] - last([history])[0]).max() > 1e-3
  np.testing.assert_allclose(found[1:], last([[], history[:3]]), atol=1e-6)


def test_the_folder_holds_weights_vocabulary_and_settings(run, folder):
  encoder, params, _ = restore_encoder(run)
  # Who may read one file may read all.
  assert len({path.stat().st_mode for path in folder.glob('*.*')}) == 1
  # What loaded it may have left its compiled code there.
  assert {path.name for path in folder.iterdir()} - {'__pycache__'} == {
    'encoder.jaxexport',
    'load.py',
    'settings.json',
    'vocabulary',
    'weights.safetensors',
  }
  weights = safetensors.numpy.load_file(folder / 'weights.safetensors')
  assert len(weights) == len(jax.tree.leaves(params))
  np.testing.assert_array_equal(
    weights['blocks_0.attention.query.kernel'],
    params['blocks_0']['attention']['query']['kernel'],
  )
  lines = (folder / 'vocabulary').read_text().splitlines()
  assert [json.loads(line) for line in lines] == ITEMS
  settings = json.loads((folder / 'settings.json').read_text())
  assert UserEncoder(**settings['encoder']) == encoder
  assert settings['commit'] == commit()
  assert settings['jax'] == jax.__version__
  assert settings['dataset'] == 'unknown'
  assert settings['platforms'] == ['cpu', 'cuda', 'tpu']


@pytest.mark.parametrize(
  'fields',
  [
    {'causal': True, 'readout': 'last', 'max_length': 3},
    {
      'cosine_pooling': True,
      'num_queries': 2,
      'readout': 'pooled,last',
      'dtype': 'bfloat16',
    },
  ],
)
def test_any_encoder_of_any_number_of_users_and_items(tmp_path, fields):
  encoder = UserEncoder(
    **{'num_items': 2, 'max_length': 7, 'embed_dim': 4, 'num_layers': 1}
    | fields
  )
  params = drawn_params(encoder, seed=0)
  save_encoder(tmp_path / 'run', encoder, params, ['a', 'b'])
  load = loader_of(exported(tmp_path / 'run', tmp_path / 'out'))
  # Of as many items as may be, and of more than the encoder sees.
  for users, count in ((1, 1), (3, 50)):
    items = np.ones((users, min(count, encoder.max_length)), np.int32)
    items[:, -1] = 2
    expected = jax.jit(encoder.apply)({'params': params}, items)
    found = load([['a'] * (count - 1) + ['b']] * users)
    np.testing.assert_allclose(found, expected, atol=1e-6)
  assert load([]).shape == (0, encoder.vector_dim)


def test_a_precision_may_be_chosen(run, folder, tmp_path):
  coarse = exported(run, tmp_path / 'coarse', dtype='bfloat16')
  coarse = loader_of(coarse)(HISTORIES.values())
  fine = loader_of(folder)(HISTORIES.values())
  error = np.abs(coarse - fine).max() / np.abs(fine).max()
  assert 1e-5 < error < 0.1


@pytest.mark.parametrize('history', ['item 3', [3], 3, None, ['item 3', None]])
def test_what_is_no_list_of_ids_is_refused(folder, history):
  with pytest.raises(TypeError, match='list of raw item ids'):
    loader_of(folder)([['item 3'], history])


def test_a_generator_is_refused(folder):
  load = loader_of(folder)
  for load.history in ('last', 'whole'):
    with pytest.raises(TypeError):
      load([iter(['item 3'])])


@pytest.mark.parametrize(
  ('changes', 'error', 'message'),
  [
    ({'pretrained': ''}, SettingsError, '--pretrained=DIR'),
    ({'output': ''}, SettingsError, '--output=DIR'),
    ({'output': '{tmp}/file/below'}, SettingsError, 'not written'),
    ({'pretrained': '{tmp}'}, CheckpointError, 'no checkpoint'),
  ],
)
def test_bad_flags_are_told_and_leave_nothing(
  run, tmp_path, changes, error, message
):
  (tmp_path / 'file').write_text('mine')
  fields = {'pretrained': run, 'output': '{tmp}/out'} | changes
  fields = {name: text.format(tmp=tmp_path) for name, text in fields.items()}
  with pytest.raises(error, match=message):
    export.main(export.ExportSettings(**fields))
  assert files(tmp_path) == {'file': b'mine'}


def test_a_folder_is_never_overwritten(run, folder):
  before = files(folder)
  with pytest.raises(SettingsError, match='deployed exists'):
    exported(run, folder)
  assert files(folder) == before


def test_a_full_disk_is_told_and_leaves_nothing(run, tmp_path, monkeypatch):
  def fail(*_):
    raise safetensors.SafetensorError('No space left on device')

  monkeypatch.setattr('safetensors.numpy.save_file', fail)
  with pytest.raises(SettingsError, match='was not written: No space left'):
    exported(run, tmp_path / 'out')
  assert not list(tmp_path.iterdir())


def test_without_its_packages_the_extra_is_named(run, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'safetensors.numpy', None)
  with pytest.raises(SettingsError, match=r"pip install '\.\[export\]'"):
    exported(run, tmp_path / 'out')
  assert not list(tmp_path.iterdir())
