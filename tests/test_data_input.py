"""Files from outside are never executed, and are checked before use."""

import ast
import stat
import tracemalloc
import zipfile

import pytest

from adaptssr_jax.data import DataError
from adaptssr_jax.data.readers import archives
from adaptssr_jax.data.readers.archives import read_member
from adaptssr_jax.data.readers.movielens_files import EDITIONS, read
from tests.synthetic_movielens import grouplens_files, write_zip
from tests.tiny_runs import ROOT

SOURCES = sorted(
  path
  for part in ('adaptssr_jax', 'experiments')
  for path in (ROOT / part).rglob('*.py')
)
# Modules that turn bytes into objects, and so run code; and all '...ickle'.
UNSAFE = {'dill', 'joblib', 'marshal', 'shelve', 'yaml'}


def is_unsafe(module):
  root = module.split('.')[0]
  return root in UNSAFE or root.lower().endswith('ickle')


def unsafe(tree):
  """Yields the line and name of what would execute or unpickle something."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names if is_unsafe(alias.name)]
      yield from ((node.lineno, name) for name in names)
    elif isinstance(node, ast.ImportFrom):
      if is_unsafe(node.module or ''):
        yield node.lineno, node.module
    elif isinstance(node, ast.Call):
      name = ast.unparse(node.func)
      if name in {'eval', 'exec', 'compile', '__import__'}:
        yield node.lineno, name
      # With weights_only it executes no code of the file.
      given = {word.arg: ast.unparse(word.value) for word in node.keywords}
      if name == 'torch.load' and given.get('weights_only') != 'True':
        yield node.lineno, name
      if name in {'os.system', 'os.popen'}:
        yield node.lineno, name
      for keyword in node.keywords:
        if keyword.arg in {'allow_pickle', 'shell'} and not (
          isinstance(keyword.value, ast.Constant)
          and keyword.value.value is False
        ):
          yield node.lineno, keyword.arg
      # Members of an archive may only be unpacked after they have been checked.
      if name.endswith(('.extract', '.extractall', '.unpack_archive')):
        yield node.lineno, name


@pytest.mark.parametrize(
  'path', SOURCES, ids=lambda path: str(path.relative_to(ROOT))
)
def test_nothing_from_outside_is_unpickled_run_or_unpacked(path):
  assert not list(unsafe(ast.parse(path.read_text())))


def test_the_test_above_sees_what_it_looks_for():
  lines = [
    'import cloudpickle',
    'from yaml import load',
    'np.load(path, allow_pickle=True)',
    'eval(text)',
    'run(command, shell=True)',
    'zipfile.ZipFile(path).extractall()',
    'torch.load(path, weights_only=False)',
    'torch.load(path, weights_only=True)',
  ]
  found = unsafe(ast.parse('\n'.join(lines)))
  assert [line for line, _ in found] == list(range(1, 8))


def zip_of(path, *entries):
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    for entry, text in (('good.txt', b'good'), *entries):
      archive.writestr(entry, text)
  return path


def link(name):
  entry = zipfile.ZipInfo(name)
  entry.external_attr = (stat.S_IFLNK | 0o777) << 16
  return entry


def test_a_harmless_archive_is_read(tmp_path):
  path = zip_of(tmp_path / 'a.zip', ('folder/', b''), ('folder/b..txt', b'b'))
  assert read_member(path, 'good.txt') == b'good'
  with pytest.raises(DataError, match='has no none; download it again'):
    read_member(path, 'none')


@pytest.mark.parametrize(
  'name',
  ['../evil', 'a/../../evil', '/etc/evil', '..\\evil', 'C:\\evil', 'C:/evil'],
)
def test_an_archive_with_a_path_out_of_it_is_refused(tmp_path, name):
  path = zip_of(tmp_path / 'a.zip', (name, b'evil'))
  with pytest.raises(DataError, match=f'{path} is refused: .*evil.* leads out'):
    read_member(path, 'good.txt')


def test_an_archive_with_a_link_is_refused(tmp_path):
  path = zip_of(tmp_path / 'a.zip', (link('innocent'), b'/etc/passwd'))
  with pytest.raises(DataError, match="'innocent' is a link"):
    read_member(path, 'good.txt')


@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_an_archive_with_a_name_twice_is_refused(tmp_path):
  path = zip_of(tmp_path / 'a.zip', ('good.txt', b'other'))
  with pytest.raises(DataError, match='is in it twice'):
    read_member(path, 'good.txt')


def test_a_size_bomb_is_refused_before_it_goes_off(tmp_path, monkeypatch):
  bomb = bytes(4 << 20)
  path = zip_of(tmp_path / 'a.zip', ('bomb', bomb))
  assert path.stat().st_size < 10_000
  monkeypatch.setattr(zipfile.ZipFile, 'open', None)
  with pytest.raises(DataError, match=r"'bomb' unpacks to .* x"):
    read_member(path, 'bomb')
  monkeypatch.setattr(archives, '_MOST_BYTES', 1 << 20)
  with pytest.raises(DataError, match='unpacks to more than 1,048,576 bytes'):
    read_member(path, 'good.txt')
  monkeypatch.setattr(archives, '_MOST_FILES', 1)
  with pytest.raises(DataError, match='it holds 2 files'):
    read_member(path, 'good.txt')


def test_a_bomb_whose_size_is_wrong_does_not_go_off(tmp_path):
  path = zip_of(tmp_path / 'a.zip', ('bomb', bytes(64 << 20)))
  data = bytearray(path.read_bytes())
  # In the directory of the archive, the unpacked size is before the name.
  at = data.rindex(b'bomb') - 22
  data[at : at + 4] = (100).to_bytes(4, 'little')
  path.write_bytes(data)
  tracemalloc.start()
  with pytest.raises(DataError, match='cannot be read'):
    read_member(path, 'bomb')
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 8 << 20


def test_a_large_archive_is_refused_unopened(tmp_path, monkeypatch):
  path = zip_of(tmp_path / 'a.zip')
  assert read_member(path, 'good.txt') == b'good'
  with path.open('ab') as file:
    file.truncate(1 << 28)
  monkeypatch.setattr(zipfile, 'ZipFile', None)
  with pytest.raises(DataError, match='it has more than 134,217,728 bytes'):
    read_member(path, 'good.txt')


def test_a_file_that_lies_about_its_size_is_an_error(tmp_path):
  path = zip_of(tmp_path / 'a.zip', ('liar', b'0123456789' * 50))
  whole = path.read_bytes()
  assert whole.count((500).to_bytes(4, 'little')) == 2
  small = whole.replace((500).to_bytes(4, 'little'), (5).to_bytes(4, 'little'))
  path.write_bytes(small)
  with pytest.raises(DataError, match=r'a\.zip, liar cannot be read'):
    read_member(path, 'liar')


def test_a_movielens_zip_is_checked_as_well(tmp_path):
  files = grouplens_files('1m') | {'../evil': b''}
  path = write_zip(tmp_path / 'ml-1m.zip', files)
  with pytest.raises(DataError, match='leads out of it'):
    read(path, EDITIONS['1m'])
