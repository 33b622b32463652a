"""The commands before a run: lists, help, flag files, quiet."""

import configparser
import contextlib
import dataclasses
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import pytest

from adaptssr_jax.encoder.model import READOUTS, UserEncoder
from experiments import baselines
from experiments.__main__ import commands
from experiments.benchmarking.options import BenchmarkSettings
from experiments.comparison.options import CompareSettings
from experiments.flags import shared
from experiments.flags.binder import SettingsError, from_flagfile
from experiments.flags.finetuning import FinetuneSettings
from experiments.flags.flag_files import (
  CONFIGS,
  FlagFileWord,
  with_flagfiles,
  with_location,
)
from experiments.flags.pretraining import PretrainSettings
from experiments.flags.small_commands import (
  BaselineSettings,
  ReportSettings,
  SimilaritySettings,
)
from experiments.run import process
from experiments.run.command import group_of, help_of, refuse_unused
from experiments.run.data import open_data
from experiments.run.process import be_quiet, call, inner_run, print_result_line
from experiments.run.progress import Progress
from tests.tiny_runs import ROOT

# What is slow to import.
HEAVY = ('jax', 'flax', 'tensorflow_datasets', 'sklearn', 'numpy')


def python(*words, folder=ROOT, path=ROOT):
  return subprocess.run(
    [sys.executable, *words],
    cwd=folder,
    env=os.environ | {'PYTHONPATH': str(path)},
    capture_output=True,
    text=True,
  )


def test_the_commands_are_listed_with_a_line_each():
  done = python('-X', 'importtime', '-m', 'experiments')
  for name, line in commands().items():
    assert f'\n{name:10}  {line}\n' in f'\n{done.stdout}'
  assert not imported(done) & {*HEAVY, 'absl'}


def imported(done):
  """The packages of -X importtime."""
  lines = done.stderr.splitlines()
  names = [line.rpartition('|')[2].strip() for line in lines if '|' in line]
  return {name.split('.')[0] for name in names}


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    (('experiments', 'pretrain'), 'run a command by python -m experiments.'),
    (('experiments.pretrain', 'my.flags'), 'of flags is --flagfile=my.flags'),
  ],
)
def test_an_argument_that_is_no_flag_is_refused(words, message):
  done = python('-m', *words)
  assert done.returncode == 1
  assert done.stderr.startswith(f'error: unexpected argument {words[1]!r}: ')
  assert message in done.stderr


@pytest.mark.parametrize('name', commands())
def test_help_has_groups_and_imports_nothing_heavy(name):
  done = python('-X', 'importtime', '-m', f'experiments.{name}', '--help')
  assert done.returncode == 0
  about, *groups = done.stdout.split('\n\nmost runs:\n')
  assert about.startswith(commands()[name])
  assert len(groups) == 1
  assert '--[no]quiet:' in groups[0].split('\n\n')[0]
  assert not imported(done) & {*HEAVY, 'adaptssr_jax'}


def test_flags_that_most_runs_need_come_first():
  text = help_of(PretrainSettings, 'About it.')
  titles = [line for line in text.splitlines() if line and line[0] not in ' A']
  assert titles == [
    'most runs:',
    'this command:',
    'objective:',
    'encoder:',
    'training:',
    'data:',
    'speed:',
    'devices:',
    'several processes:',
    'plan:',
  ]
  first = text[text.index('most runs:') : text.index('this command:')]
  for name in ('flagfile', 'dataset', 'objective', 'workdir', 'num_epochs'):
    assert f'  --{name}: ' in first
  assert group_of(PretrainSettings, 'mask_ratio') == 'objective'
  # Defined first by another class, though it has another default here.
  assert group_of(FinetuneSettings, 'dropout_rate') == 'encoder'


def test_the_flags_know_the_encoder_without_importing_it():
  ours = {field.name: field for field in dataclasses.fields(UserEncoder)}
  flags = {
    field.name: field for field in dataclasses.fields(shared.EncoderSettings)
  }
  names = flags.keys() - {'item_stddev'}
  assert names == ours.keys() - {'num_items', 'parent', 'name'}
  assert shared.READOUTS == READOUTS
  for name in names:
    default = str(ours[name].default).lower()
    assert f'[{default}' in flags[name].metadata['help'], name


def test_bad_flags_are_told_before_anything_heavy_is_imported(tmp_path):
  words = '--crop_ratio=0', f'--workdir={tmp_path}/run'
  done = python('-X', 'importtime', '-m', 'experiments.pretrain', *words)
  assert done.returncode == 1
  assert done.stderr.endswith(
    'error: --crop_ratio must be above 0.0, not 0.0\n'
  )
  assert not imported(done) & {*HEAVY}
  assert not (tmp_path / 'run').exists()


def test_flag_files_are_found_by_name(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  settings = from_flagfile(PretrainSettings, 'ml1m_pretrain.flags')
  assert settings == from_flagfile(
    PretrainSettings, CONFIGS / 'ml1m_pretrain.flags'
  )
  pathlib.Path('mine.flags').write_text(
    '# Mine.\n--flagfile=ml1m_pretrain.flags\n  // As there.\n\n --seed=7 \n'
  )
  mine = from_flagfile(PretrainSettings, 'mine.flags')
  assert mine == dataclasses.replace(settings, seed=7)
  # What is here comes before what comes with the package.
  pathlib.Path('ml1m_pretrain.flags').write_text('--seed=8\n')
  assert from_flagfile(PretrainSettings, 'ml1m_pretrain.flags').seed == 8


def test_files_that_compare_names_are_found_by_name():
  for path in CONFIGS.glob('*.flags'):
    for word in with_flagfiles([f'--flagfile={path.name}']):
      value = word.partition('=')[2]
      if value.endswith('.flags'):
        assert (CONFIGS / value).is_file(), (path, word)


@pytest.mark.parametrize(
  ('words', 'found'),
  [
    (['--seed=1', '--flagfile', 'a.flags'], ['--seed=1', '--x=1']),
    (['-flagfile=a.flags', '--y'], ['--x=1', '--y']),
    (['--flagfile=', '--y'], ['--y']),
    (['--flagfiles=a', 'flagfile', '--'], ['--flagfiles=a', 'flagfile', '--']),
  ],
)
def test_a_flag_file_stands_for_its_words(tmp_path, monkeypatch, words, found):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'a.flags').write_text('--x=1\n')
  assert with_flagfiles(words) == found


def test_a_flag_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'a.flags').write_text('--flagfile=b.flags\n')
  (tmp_path / 'b.flags').write_text('--flagfile=a.flags\n')
  (tmp_path / 'bytes.flags').write_bytes(b'\xff\xfe')
  for words, message in {
    ('--flagfile=gone.flags',): '^--flagfile=gone.flags: no such file.*quickst',
    ('--flagfile=a.flags',): '^--flagfile=a.flags: the file includes itself',
    ('--flagfile=bytes.flags',): '^--flagfile=bytes.flags cannot be read',
    ('--flagfile',): '^--flagfile needs a file',
  }.items():
    with pytest.raises(SettingsError, match=message):
      with_flagfiles(words)
  done = python('-m', 'experiments.embed', '--flagfile=gone', folder=tmp_path)
  assert done.returncode == 1
  assert done.stderr.startswith('error: --flagfile=gone: no such file')


@pytest.mark.parametrize(
  ('lines', 'words'),
  [
    ('--embed_dim=8\n--embed_dim=0', r'--embed_dim must be at least 1, not 0'),
    ('# Mine.\n--embed_dim=x', r'flag --embed_dim=x: .*x.*'),
    ('\n--embed_dims=8', r"Unknown command line flag 'embed_dims'.*"),
    ('\n--dataset=nowhere', r'--dataset: no .nowhere.. There are: .*'),
  ],
)
def test_a_bad_flag_is_told_with_its_file_and_line(tmp_path, lines, words):
  (tmp_path / 'a.flags').write_text('--flagfile=b.flags\n')
  (tmp_path / 'b.flags').write_text(lines)
  command = ('-m', 'experiments.pretrain', '--flagfile=a.flags')
  done = python(*command, folder=tmp_path)
  assert done.returncode == 1
  assert re.fullmatch(
    rf'error: {words} \(b.flags, line 2\)(; --help lists the flags)?\n',
    done.stderr,
  ), done.stderr


@pytest.mark.parametrize(
  ('settings', 'words', 'message'),
  [
    (PretrainSettings(num_next=7), ['--num_next=7'], 'it is for next_items'),
    (
      FinetuneSettings(mode='probe', num_epochs=7),
      ['--mode=probe', '--num_epochs=7'],
      'has no effect with --mode=probe',
    ),
    (
      FinetuneSettings(mode='zero_shot', train_users=7),
      ['--train_users', '7'],
      'has no effect with --mode=zero_shot',
    ),
    (CompareSettings(probe_splits=7), ['--probe_splits=7'], 'is for --modes='),
    (
      CompareSettings(modes=('frozen',), crossed=False),
      ['--nocrossed'],
      'is for --modes=fine_tuned',
    ),
    (
      ReportSettings(runs=('a',), follow_every=7.0),
      ['--follow_every=7'],
      'is for --follow',
    ),
  ],
)
def test_a_flag_without_effect_is_refused_but_in_a_file(
  settings, words, message
):
  with pytest.raises(SettingsError, match=f'^--.*{message}'):
    refuse_unused(settings, words)
  in_file = [FlagFileWord(word) for word in words]
  for word in in_file:
    word.location = 'a.flags, line 1'
  (unused,) = refuse_unused(settings, in_file)
  assert unused.lstrip('-') in ' '.join(words)


def test_defaults_are_never_without_effect():
  for settings in (PretrainSettings(), FinetuneSettings(), CompareSettings()):
    assert not refuse_unused(settings, ['--num_next=10', '--window=last'])


def test_the_last_flag_is_the_one_that_is_told(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  pathlib.Path('a.flags').write_text('--seed=1\n--seeds=2\n--noquiet\n')
  words = with_flagfiles(['--quiet', '--flagfile=a.flags', '--seed=3'])
  assert with_location('--seed must', words) == '--seed must'
  assert with_location('--seeds is', words) == '--seeds is (a.flags, line 2)'
  assert with_location('--quiet is', words) == '--quiet is (a.flags, line 3)'
  assert with_location('no flag', words) == 'no flag'


@pytest.mark.parametrize(
  ('dataset', 'task', 'words'),
  [
    (
      'synthetic_users/tiny',
      'gendr',
      "--task=gendr: no 'gendr'; did you mean 'gender'? There are: pretrain, "
      'gender, age, ',
    ),
    ('synthetic_users', 'age', ' There are: synthetic_users/tiny, '),
    ('ta_feng/1m', 'age', "mean 'ta_feng'? There are: ta_feng"),
    ('ta_feng', 'ages', "mean 'age'? There are: pretrain, age"),
    ('movielens_users/10m', 'age', 'movielens_users/100k, movielens_users/1m'),
    (
      'movielens_users/1m',
      'x',
      'click, thumb_up, click_by_user, thumb_up_by_user',
    ),
    ('nothing', 'age', ' synthetic_users, movielens_users, ta_feng, '),
  ],
)
def test_only_what_a_data_set_has_is_listed(tmp_path, dataset, task, words):
  settings = shared.DataSettings(dataset=dataset, data_dir=str(tmp_path))
  with pytest.raises(SettingsError) as caught:
    open_data(settings, task)
  told = str(caught.value)
  assert words in told
  listed = told.partition('There are: ')[2].split(', ')
  assert not any('tiny_' in name or '1m_' in name for name in listed)
  assert len(listed) <= 10


def complaints(printed):
  """The lines but those of JAX before 0.10.2 on programs read from a cache."""
  return [s for s in printed.splitlines() if 'cpu_aot_loader.cc' not in s]


@pytest.fixture
def loud_again():
  yield
  be_quiet(False)


@pytest.mark.usefixtures('loud_again')
def test_a_quiet_command_tells_its_result_alone(tmp_path, data_dir, capfd):
  settings = BaselineSettings(
    dataset='synthetic_users/tiny',
    data_dir=data_dir,
    workdir=f'{tmp_path}/run',
    quiet=True,
  )
  call(baselines.main, settings)
  quiet = capfd.readouterr()
  assert quiet.out.startswith('bag_of_items, gender: accuracy ')
  assert quiet.out.count('\n') == 1
  assert not complaints(quiet.err)
  # Another time it may be printed all the same.
  call(baselines.main, dataclasses.replace(settings, quiet=False))
  assert capfd.readouterr().out.endswith(f'60 items\n{quiet.out}')
  call(baselines.main, settings)
  with pytest.raises(SystemExit, match=r'^error: --workdir=.*/run holds'):
    call(baselines.main, dataclasses.replace(settings, task='age'))


@pytest.mark.parametrize(
  ('settings', 'is_resumable'),
  [
    (PretrainSettings(), True),
    (BaselineSettings(), False),
    (SimilaritySettings(), False),
    (ReportSettings(runs=('run',)), False),
    (BenchmarkSettings(), False),
    (BenchmarkSettings(growth=True), True),
    (BenchmarkSettings(objectives=('all',)), True),
    (BenchmarkSettings(objectives=('adaptssr',), quick=True), False),
  ],
)
def test_a_stopped_command_fails_unless_it_goes_on(
  settings, is_resumable, monkeypatch, capsys
):
  monkeypatch.setattr(process, 'prepare_process', lambda settings: None)
  # Not by an ordinary exit, whose cleanup may crash.
  monkeypatch.setattr(os, '_exit', sys.exit)
  stopped = 'stopped by SIGTERM: give the same command to'
  with contextlib.nullcontext() if is_resumable else pytest.raises(SystemExit):
    assert call(lambda settings: signal.raise_signal(signal.SIGTERM), settings)
  assert capsys.readouterr() == (
    (f'{stopped} resume\n', '')
    if is_resumable
    else ('', f'error: {stopped} start again\n')
  )


def test_too_little_memory_is_one_error(monkeypatch):
  monkeypatch.setattr(process, 'prepare_process', lambda settings: None)

  def allocate(settings):
    raise MemoryError('Unable to allocate 43.7 TiB')

  message = r'^error: .* memory \(Unable .* TiB\): take a smaller --batch_size'
  with pytest.raises(SystemExit, match=message):
    call(allocate, PretrainSettings())


@pytest.mark.usefixtures('loud_again')
def test_a_quiet_run_has_no_progress_and_an_inner_one_no_results(capfd):
  be_quiet(True)
  with inner_run():
    print_result_line('of one of many runs')
  print_result_line('of the command')
  with Progress('run', total=3, start=0, users=1, every=0.001) as progress:
    for _ in range(3):
      progress.update(1.0)
  assert capfd.readouterr() == ('of the command\n', '')


def test_a_file_finds_what_it_names_beside_itself(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  folder = tmp_path / 'mine'
  folder.mkdir()
  (folder / 'one.flags').write_text('--flagfile=quickstart.flags\n')
  (folder / 'quickstart.flags').write_text('--seed=5\n')
  assert with_flagfiles(['--flagfile=mine/one.flags']) == ['--seed=5']


def test_every_command_can_be_quiet_and_has_a_script():
  setup = configparser.ConfigParser()
  setup.read(ROOT / 'setup.cfg')
  scripts = setup['options.entry_points']['console_scripts'].split('\n')
  assert {script.split(' = ')[0] for script in scripts if script} == {
    f'adaptssr-{name}' for name in commands()
  }


def test_a_script_is_the_command_it_is_named_after():
  expected = python('-m', 'experiments.embed', '--help').stdout
  for name in ('adaptssr-embed', 'adaptssr-embed.exe'):
    code = f"""
import sys
from experiments.__main__ import script
sys.argv = ['/bin/{name}', '--help']
script()
"""
    assert python('-c', code).stdout == expected


@pytest.mark.slow
def test_a_wheel_runs_without_the_repository(tmp_path):
  """The project is copied first, so that building leaves nothing in it."""
  project, site, empty = (
    tmp_path / name for name in ('project', 'site', 'empty')
  )
  empty.mkdir()
  for name in ('adaptssr_jax', 'experiments'):
    shutil.copytree(ROOT / name, project / name)
  for name in ('setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE'):
    (project / name).write_bytes((ROOT / name).read_bytes())
  pip = ('-m', 'pip', '--disable-pip-version-check', 'install')
  # Through a wheel, which pip makes.
  words = ('-q', '--no-deps', '--target', str(site), str(project))
  done = python(*pip, *words)
  assert done.returncode == 0, done.stderr
  small = ('--dataset=synthetic_users/tiny', '--embed_dim=8', '--microbatch=0')
  words = (
    *('--flagfile=quickstart.flags', *small),
    *('--buckets=1', '--num_steps=2', '--quiet'),
  )
  done = python('-m', 'experiments.pretrain', *words, folder=empty, path=site)
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith('pre-trained: runs/')
  assert done.stdout.count('\n') == 1
  assert not complaints(done.stderr)
  listed = python('-m', 'experiments', folder=empty, path=site)
  assert 'pretrain' in listed.stdout
  done = subprocess.run(
    [site / 'bin' / 'adaptssr-pretrain', '--help'],
    cwd=empty,
    env=os.environ | {'PYTHONPATH': str(site)},
    capture_output=True,
    text=True,
  )
  assert done.stdout.startswith('Pre-trains a user model')
  assert f'{site}/experiments/configs' in done.stdout
