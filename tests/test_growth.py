"""The benchmarks of growth and of a GPU: runs, results and chosen flags."""

import json

import pytest

from experiments import benchmark, pretrain
from experiments.benchmarking import cases
from experiments.flags.binder import SettingsError, from_flagfile
from tests.test_benchmark import answered, changed, measured
from tests.tiny_runs import PLAIN


@pytest.fixture(name='ran')
def cases_that_are_run(monkeypatch):
  """The cases in the order in which they run, with rates given by name."""

  def answer(case):
    if case.changes.get('embed_dim') == 128:
      return {'error': 'not done after 9 s'}
    machine = {'peak_mib': 70.0, 'device': 'H1', 'jax': '1', 'num_items': 40}
    return measured(9 if case.name in FAST else 5) | machine

  return answered(monkeypatch, answer)


FAST = ('--microbatch=64', '--buckets=1', '--table_update=rows')


def test_growth_is_measured_drawn_and_resumed(ran, tmp_path, capsys):
  settings = changed(growth=True, workdir=str(tmp_path / 'growth'))
  runs = benchmark.main(settings)
  assert len(runs) == len(ran) == 20
  # With a cache, the peak memory would not include compilation.
  assert {cache for _, cache in ran} == {'off'}
  path = tmp_path / 'growth' / 'growth.json'
  whole = json.loads(path.read_text())
  assert whole['runs'] == runs
  lost = [run for run in runs if 'error' in run]
  assert [(run['section'], run['name']) for run in lost] == [
    ('Growth with --embed_dim', '128')
  ]
  assert 'Growth with --embed_dim, 128, ours: not done' in (
    capsys.readouterr().out
  )
  pictures = {found.stem for found in path.parent.glob('*.svg')}
  assert pictures == {
    f'growth_{name}'
    for name in (
      'batch_size',
      'max_length',
      'embed_dim',
      'num_items',
      'cpu_devices',
    )
  }
  # Only failed and missing cases are measured again.
  last = whole['runs'].pop()
  path.write_text(json.dumps(whole))
  ran.clear()
  kept = [run for run in whole['runs'] if 'error' not in run]
  assert benchmark.main(settings) == [*kept, *lost, last]
  assert [(case.section, case.name) for case, _ in ran] == [
    ('Growth with --embed_dim', '128'),
    ('Growth with --cpu_devices', '8'),
  ]


def test_growth_of_other_flags_or_code_is_not_resumed(ran, tmp_path):
  settings = changed(growth=True, quick=True, workdir=str(tmp_path))
  benchmark.main(settings)
  assert [(case.section[14:], case.name) for case, _ in ran[:3]] == [
    ('batch_size', '128'),
    ('batch_size', '1024'),
    ('max_length', '50'),
  ]
  assert len(ran) == 10
  other = changed(growth=True, quick=True, steps=4, workdir=str(tmp_path))
  with pytest.raises(SettingsError, match='--steps was 3, is 4'):
    benchmark.main(other)
  path = tmp_path / 'growth.json'
  path.write_text(
    json.dumps(json.loads(path.read_text()) | {'commit': 'before'})
  )
  with pytest.raises(SettingsError, match='the commit was before, is'):
    benchmark.main(settings)
  path.write_text('[]')
  with pytest.raises(SettingsError, match='is not what --growth writes'):
    benchmark.main(settings)


def test_flags_are_chosen_for_a_gpu_and_can_be_read(ran, tmp_path):
  settings = changed(gpu=True, reference='there', workdir=str(tmp_path))
  runs = benchmark.main(settings)
  assert 'off' not in {cache for _, cache in ran}
  tried = [case for case, _ in ran]
  assert [case.name for case in tried] == [
    *(f'--microbatch={n}' for n in (0, 64, 256, 1024)),
    *(f'--buckets={n}' for n in (1, 2, 4, 8)),
    '--table_update=dense',
    '--table_update=rows',
    *['40 items'] * 3,
  ]
  # Chosen values are kept for the next choices and for the comparison.
  chosen = {'num_items': ('40',), 'microbatch': 64, 'buckets': 1}
  assert tried[4].changes == chosen
  chosen |= {'table_update': 'rows'}
  three = (cases.OURS, cases.PADDED, cases.TRIMMED)
  assert [(case.who, case.changes) for case in tried[-3:]] == [
    (who, chosen) for who in three
  ]
  whole = json.loads((tmp_path / 'gpu.json').read_text())
  assert whole['runs'] == runs
  assert whole['flags']['dtype'] == 'bfloat16'
  path = tmp_path / 'chosen_40.flags'
  assert '--gpu at 40 items' in path.read_text()
  assert 'users a batch, on H1' in path.read_text()
  read = from_flagfile(pretrain.PretrainSettings, path)
  assert (read.microbatch, read.buckets) == (64, 1)
  assert (read.table_update, read.dtype) == ('rows', 'bfloat16')


@pytest.mark.slow
def test_each_table_is_measured_in_its_own_process(tmp_path, monkeypatch):
  monkeypatch.setattr(cases, '_GROWTH', {'num_items': [4048, 65_536]})
  settings = changed(
    growth=True, quick=True, workdir=str(tmp_path / 'out'), **PLAIN
  )
  benchmark.main(settings)
  runs = json.loads((tmp_path / 'out' / 'growth.json').read_text())['runs']
  assert not [run for run in runs if 'error' in run]
  assert [run['num_items'] for run in runs] == [4048, 65_536]
  memory = [run['peak_mib'] for run in runs]
  assert 0 < memory[0] < memory[1]
