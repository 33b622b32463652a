"""The page of a report: its content, no external resources, its errors."""

import contextlib
import dataclasses
import html.parser
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from adaptssr_jax.files import locked
from experiments import report
from experiments.flags.binder import SettingsError
from experiments.reporting.page import GENERATOR
from experiments.run.vector_files import write_vectors
from tests.tiny_runs import ROOT, files, lines

BAD = '<script>alert(1)</script>&"'
RESULTS = f"""# synthetic_users/tiny

| Pre-train | gender accuracy |
|---|--:|
| One {BAD} | **61.50 ± 0.42** † |

95 % intervals, see ![a picture](https://example.org/a.png) and https://b.org
"""
VOID = {'meta', 'link', 'br', 'hr', 'img'}


class Page(html.parser.HTMLParser):
  """The elements of a page; each of them must be closed."""

  def __init__(self, text):
    super().__init__()
    self.open, self.tags, self.attributes, self.text = [], [], [], ''
    self.feed(text)
    assert not self.open

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += attrs
    if tag not in VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data

  def values(self, *names):
    return [value for name, value in self.attributes if name in names]


@pytest.fixture(scope='module')
def folder(tmp_path_factory, pretrained):
  """The workdir of a run of AdaptSSR; its name must be escaped in HTML."""
  folder = tmp_path_factory.mktemp('report') / BAD.replace('/', '')
  return shutil.copytree(pretrained.workdir, folder)


@pytest.fixture
def settings(tmp_path, folder, data_dir):
  return report.ReportSettings(
    runs=(str(folder),), output=str(tmp_path / 'page.html'), data_dir=data_dir
  )


def written(settings, **changes):
  path = report.main(dataclasses.replace(settings, **changes))
  return Page(path.read_text())


def vectors_of(folder, name='users.parquet'):
  """A file of vectors in two clusters: 8 users of the data set and another."""
  users = [f'user_{number}' for number in range(8)] + [BAD]
  vectors = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
  vectors[:4] += 9
  path = folder / name
  write_vectors(path, [(users, vectors)], vectors.shape)
  return path, users, vectors


@pytest.fixture(scope='module')
def page(tmp_path_factory, folder):
  """The page of the run."""
  output = tmp_path_factory.mktemp('page') / 'page.html'
  return written(report.ReportSettings(runs=(str(folder),), output=str(output)))


def test_a_run_has_settings_curves_and_a_table(page, folder):
  for word in ('--learning_rate', 'synthetic_users/tiny', 'adaptssr', '9'):
    assert word in page.text
  for metric in ('loss', 'lambda', 'implicit_over_explicit', 'effective_rank'):
    assert f'{metric} over steps, of 1 runs' in page.values('aria-label')
  last = lines(folder)[-1]
  assert f'{last["validation_lambda"]:.4g}' in page.text
  assert page.tags.count('table') == 3
  assert page.tags.count('svg') == page.tags.count('figcaption') > 9


def test_a_page_loads_nothing_and_escapes_markup(page):
  assert 'script' not in page.tags
  assert BAD.replace('/', '') in page.text
  assert page.values('src') == []
  links = page.values('href', 'xlink:href', 'clip-path', 'mask', 'filter')
  assert len(links) > 9
  assert all(link.startswith(('data:', '#', 'url(#')) for link in links)
  style = ''.join([page.text, *page.values('style')])
  assert not any(word in style for word in ('url(', '@import'))
  assert 'http-equiv' not in dict(page.attributes)


def test_runs_share_charts_and_list_differing_flags(
  settings, folder, tmp_path, page
):
  other = tmp_path / 'other'
  other.mkdir()
  flags = (folder / 'flags.txt').read_text()
  (other / 'flags.txt').write_text(flags.replace('--seed=0', '--seed=7'))
  shutil.copy(folder / 'metrics.jsonl', other)
  both = written(settings, runs=(*settings.runs, str(other)))
  assert both.tags.count('svg') == page.tags.count('svg')
  differing = both.text.split('Settings that differ')[1].split('All ')[0]
  assert differing.split()[-3:] == ['--seed', '0', '7']


@pytest.mark.parametrize('text', ['{"broken', '{"test": 3}', '[1]', '\udcff'])
def test_a_broken_result_is_named(settings, tmp_path, text):
  (tmp_path / 'flags.txt').write_text('--task=gender\n')
  path = tmp_path / 'result.json'
  path.write_text(text, errors='surrogateescape')
  with pytest.raises(SettingsError, match=r'result.json is not what a run wr'):
    written(settings, runs=(str(tmp_path),))


def test_values_that_are_not_finite_are_left_out(settings, tmp_path):
  flags = '--quiet\n--variant=one: a=1\n--variant=two: a=2\n'
  (tmp_path / 'flags.txt').write_text(flags)
  values = 'null', 'NaN', '1e308', '-Infinity', '[3]', '0.125'
  (tmp_path / 'metrics.jsonl').write_text(
    ''.join(
      f'{{"step": {step}, "loss": {value}, "gone": NaN}}\n'
      for step, value in enumerate(values)
    )
  )
  result = (
    '{"task": "gender", "validation": {"auc": 0.81234, "accuracy": null}, '
    '"test": {"auc": 0.75, "mrr": NaN, "accuracy": [1]}}'
  )
  (tmp_path / 'result.json').write_text(result)
  page = written(settings, runs=(str(tmp_path),))
  assert page.tags.count('svg') == 1
  for word in ('0.125', '0.8123', '0.7500', 'one: a=1\ntwo: a=2'):
    assert word in page.text
  assert 'nan' not in page.text


def test_other_files_are_ignored(settings, tmp_path):
  (tmp_path / 'flags.txt').write_text('--seed=3\n')
  (tmp_path / 'bad.parquet').write_bytes(b'PAR1')
  (tmp_path / 'pickled.npz').write_bytes(b'PK')
  page = written(settings, runs=(str(tmp_path),))
  assert 'User vectors' not in page.text


def test_a_comparison_shows_its_tables_and_escapes_markup(settings, tmp_path):
  # Bytes that are not UTF-8, and control characters.
  text = RESULTS.encode() + b'\xff\x1b[0m&#12;\n'
  (tmp_path / 'results.md').write_bytes(text)
  page = written(settings, runs=(str(tmp_path),))
  assert f'One {BAD}' in page.text
  assert '61.50 ± 0.42' in page.text
  assert page.tags.count('table') == 1
  # The first cell of a row is its header.
  assert page.values('scope') == ['row']
  assert not {'img', 'a', 'script'} & set(page.tags)


def test_similarities_are_found_in_a_folder_and_inside_runs(
  settings, folder, tmp_path
):
  kind = {
    'mean': 0.5,
    'std': 0.25,
    'quantiles': {'5': 0.125, '50': 0.5, '95': 0.75},
    'histogram': [0, 3, 1],
  }
  result = {
    'dataset': 'd',
    'users': 4,
    'edges': [-1, 0, 0.5, 1],
    'methods': {BAD: {'dropout': kind, 'other': kind}},
  }
  for place in (tmp_path / 'sim', tmp_path / 'run' / 'sim'):
    place.mkdir(parents=True)
    (place / 'similarity.json').write_text(json.dumps(result))
  shutil.copy(folder / 'flags.txt', tmp_path / 'run')
  page = written(settings, runs=(str(tmp_path / 'sim'), str(tmp_path / 'run')))
  assert page.text.count('Similarities: ') == 2
  assert '0.125' in page.text
  assert page.tags.count('svg') == 2
  for text in ('{}', '{"methods": []}'):
    (tmp_path / 'sim' / 'similarity.json').write_text(text)
    with pytest.raises(SettingsError, match=r'similarity.json is not what exp'):
      written(settings, runs=(str(tmp_path / 'sim'),))


@pytest.mark.parametrize('name', ['users.parquet', 'users.npz'])
def test_users_are_mapped_and_their_nearest_named(settings, tmp_path, name):
  path, users, vectors = vectors_of(tmp_path, name)
  page = written(settings, runs=(), vectors=(str(path),), users=('user_2', BAD))
  assert 'Map of users by pca' in page.values('aria-label')
  unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
  near = np.argsort(-(unit @ unit[2]))[1:6]
  assert [users[row] for row in near] == [
    word for word in page.text.split('user_2', 1)[1].split() if word in users
  ][:5]
  assert BAD in page.text


def test_a_task_colours_users_of_a_file_in_the_folder(
  settings, folder, tmp_path, monkeypatch
):
  # The data set is read from where the run read it.
  monkeypatch.chdir(tmp_path)
  shutil.copy(folder / 'flags.txt', tmp_path)
  vectors_of(tmp_path)
  page = written(
    settings,
    data_dir='data',
    runs=(str(tmp_path),),
    vectors=(str(tmp_path / 'users.parquet'),),
    task='gender',
  )
  assert 'gender not known (' in page.text
  assert 'gender female (' in page.text
  # It is shown once, although --vectors also names it.
  assert page.text.count('User vectors: ') == 1
  assert not (tmp_path / 'data').exists()


def test_a_task_is_of_the_tables_of_the_run(settings, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  rows = [f'user_{n},i{n % 3},{n},{"xyz"[n % 2]}' for n in range(40)]
  table = '\n'.join(['who,item_id,time,kind', *rows])
  pathlib.Path('log.csv').write_text(table)
  run = tmp_path / 'run'
  run.mkdir()
  flags = '--dataset=user_tables\n--events=log.csv\n--user_column=who\n'
  (run / 'flags.txt').write_text(flags + f'--data_dir={tmp_path}/own\n')
  vectors_of(run)
  page = written(settings, runs=('run',), data_dir='data', task='kind')
  assert 'kind x (4)' in page.text
  assert not pathlib.Path('data').exists()


def test_identical_vectors_are_reported(settings, tmp_path):
  path = tmp_path / 'same.npz'
  write_vectors(path, [([*'abc'], np.ones((3, 4), np.float32))], (3, 4))
  page = written(settings, runs=(), vectors=(str(path),))
  assert 'All vectors are the same.' in page.text
  assert 'nan' not in page.text


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'runs': ('nowhere',)}, '--runs=nowhere: there is no such folder'),
    ({'runs': ('.',)}, '--runs=. holds no run, comparison, similarities or '),
    ({'vectors': ('gone.npz',)}, 'gone.npz cannot be read: '),
    ({'vectors': ('bad.parquet',)}, 'bad.parquet cannot be read: '),
    ({'vectors': ('other.npz',)}, 'other.npz has no columns user_id and '),
    ({'vectors': ('u.npz',), 'users': ('x',)}, "--users: there is no .* 'x'"),
    ({'vectors': ('u.npz',), 'task': 'click'}, '--task=click has no classes'),
    (
      {'vectors': ('u.npz',), 'runs': (), 'task': 'age'},
      'needs --dataset=NAME',
    ),
    ({'vectors': ('one.npz',)}, 'one.npz has 1 users with 4 features: a map'),
    ({'vectors': ('nan.npz',)}, 'nan.npz has vectors with nan or inf, which '),
    ({'task': 'gender'}, '--task and --users need user vectors, and no fol'),
    ({'users': ('user_2',)}, '--task and --users need user vectors, and no'),
    ({'output': 'sub.html'}, '--output=sub.html exists, and is not a page of'),
    ({'output': 'nowhere/a.html'}, '--output=nowhere/a.html: there is no such'),
    ({'output': 'own.html'}, '--output=own.html exists, and is not a page of'),
  ],
)
def test_errors_have_one_line_and_write_nothing(
  settings, tmp_path, monkeypatch, changes, message
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'own.html').write_text('<p>mine</p>')
  (tmp_path / 'notes').mkdir()
  (tmp_path / 'sub.html').mkdir()
  vectors_of(tmp_path / 'sub.html', 'u.npz')[0].rename('u.npz')
  (tmp_path / 'bad.parquet').write_bytes(b'PAR1')
  np.savez('other.npz', user_id=['a'])
  write_vectors(
    tmp_path / 'one.npz', [(['a'], np.zeros((1, 4), np.float32))], (1, 4)
  )
  np.savez('nan.npz', user_id=[*'abc'], vector=np.full((3, 4), np.nan))
  if changes.get('runs') == ('.',):
    monkeypatch.chdir(tmp_path / 'notes')
  before = files(tmp_path)
  with pytest.raises(SettingsError, match=message) as caught:
    report.main(dataclasses.replace(settings, **changes))
  assert '\n' not in str(caught.value)
  assert files(tmp_path) == before


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'runs': ()}, '^nothing to show: give the folders of runs, or --vectors'),
    ({'output': 'a.txt'}, r'^--output=a.txt: give a file that ends in .html'),
  ],
)
def test_bad_flags_are_refused(settings, changes, message):
  with pytest.raises(SettingsError, match=message):
    dataclasses.replace(settings, **changes)


def test_umap_is_an_extra(settings, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'umap', None)
  path, *_ = vectors_of(tmp_path)
  with pytest.raises(SettingsError, match=r'adaptssr_jax\[umap\]'):
    written(settings, vectors=(str(path),), map='umap')


def test_a_page_is_the_same_again_and_replaced_atomically(
  settings, tmp_path, monkeypatch
):
  written(settings)
  path = pathlib.Path(settings.output)
  kept = path.read_bytes()
  assert f'content="{GENERATOR}"' in kept.decode()[:500]
  written(settings)
  assert path.read_bytes() == kept

  def fail(*_, **__):
    raise OSError(28, 'No space left on device')

  with monkeypatch.context() as patched:
    patched.setattr(pathlib.Path, 'write_bytes', fail)
    with pytest.raises(SettingsError, match='was not written'):
      written(settings)
  assert files(tmp_path) == {'page.html': kept}


@contextlib.contextmanager
def following(settings, run):
  """Follows a run, which is active until the end of the block."""
  path = pathlib.Path(settings.output)
  followed = dataclasses.replace(
    settings, runs=(str(run),), follow=True, follow_every=0.01
  )
  thread = threading.Thread(target=report.main, args=(followed,))

  def wait_for(word):
    while not (path.exists() and word in path.read_text()):
      assert thread.is_alive()
      time.sleep(0.01)

  with locked(run / '.lock'):
    thread.start()
    wait_for('http-equiv="refresh"')
    yield wait_for
  thread.join(timeout=60)
  assert not thread.is_alive()
  assert 'http-equiv' not in path.read_text()


def test_a_run_is_followed_to_its_end(settings, folder, tmp_path, capsys):
  run = tmp_path / 'run'
  run.mkdir()
  shutil.copy(folder / 'flags.txt', run)
  logged = (folder / 'metrics.jsonl').read_text().splitlines(keepends=True)
  path, log = pathlib.Path(settings.output), run / 'metrics.jsonl'
  with following(settings, run) as wait_for:
    assert 'svg' not in Page(path.read_text()).tags
    # The last line is incomplete.
    log.write_text(''.join(logged[:3]) + logged[3][:9])
    wait_for('loss over steps')
    log.write_text(''.join(logged))
    wait_for('effective_rank over steps')
  assert 'effective_rank over steps' in path.read_text()
  assert capsys.readouterr().out.count('written') >= 3


def test_a_comparison_is_followed_until_it_writes_its_tables(
  settings, tmp_path
):
  (tmp_path / 'flags.txt').write_text('--seeds=1\n')
  with following(settings, tmp_path):
    (tmp_path / 'results.md').write_text(RESULTS)
  assert '61.50 ± 0.42' in pathlib.Path(settings.output).read_text()


def test_folders_need_no_flag_and_ctrl_c_stops_following(
  folder, settings, tmp_path
):
  run = tmp_path / 'run'
  run.mkdir()
  shutil.copy(folder / 'flags.txt', run)
  shutil.copy(folder / 'metrics.jsonl', run)
  path = run / 'report.html'
  words = [str(run), '--follow', '--follow_every=0.1']
  with locked(run / '.lock'):
    process = subprocess.Popen(
      [sys.executable, '-m', 'experiments.report', *words],
      cwd=ROOT,
      stdout=subprocess.PIPE,
      text=True,
    )
    first = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
  assert first == f'{path}: written\n'
  assert out == f'report: {path}\n'
  assert process.returncode == 0
  assert 'http-equiv' not in path.read_text()
