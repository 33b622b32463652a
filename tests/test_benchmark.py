"""The benchmark: its refusals, runs and tables."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest

from experiments import benchmark
from experiments.benchmarking import cases, reference
from experiments.benchmarking.measure import measure
from experiments.benchmarking.options import BenchmarkSettings, check
from experiments.benchmarking.report import report
from experiments.benchmarking.timing import timed
from experiments.flags.binder import SettingsError
from experiments.run.command import refuse_unused
from tests.tiny_runs import PLAIN, start

TINY = BenchmarkSettings(
  num_items=('40',),
  embed_dim=8,
  num_layers=1,
  max_length=12,
  longest=10,
  batch_size=16,
  steps=3,
  rounds=1,
)


def changed(**changes):
  return dataclasses.replace(TINY, **changes)


def test_the_timed_run_has_the_flags_of_the_benchmark():
  run = changed(microbatch=4, dtype='bfloat16').pretraining()
  assert run.encoder_fields() == {
    'max_length': 12,
    'embed_dim': 8,
    'num_layers': 1,
    'dtype': 'bfloat16',
  }
  assert (run.batch_size, run.microbatch) == (16, 4)


CLUE, REFERENCE = {'objectives': ('clue',)}, {'reference': 'checkout'}
NO_TORCH = {'reference_python': './script'}


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'num_items': ('40', 'x')}, '--num_items must be numbers .* not 40,x'),
    ({'num_items': ('1',)}, '--num_items must be'),
    ({'quick': True, 'num_items': ('4', '5')}, 'a single catalogue'),
    ({'growth': True, 'num_items': ('4', '5')}, 'a single catalogue'),
    ({'objectives': ('clue', 'ptum'), 'quick': True}, 'a single objective'),
    ({'objectives': ('cleu',)}, "--objectives: no 'cleu'; did you mean 'clue'"),
    ({'gpu': True}, '--gpu measures on a GPU, and JAX sees none'),
    ({'cpu_time': True}, 'give --cpu_devices=1'),
    ({'json': 'no/file'}, 'no folder no$'),
    ({'json': 'checkout'}, 'is a folder'),
    ({'reference': 'Code'}, 'no folder Code/AdaptSSR'),
    (REFERENCE | NO_TORCH, 'cannot import numpy and torch'),
    (CLUE | NO_TORCH, 'cannot import numpy and torch'),
    (REFERENCE | {'reference_python': './no'}, 'cannot be run'),
  ],
)
def test_flags_that_would_fail_are_refused(
  tmp_path, monkeypatch, changes, message
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'checkout/Code/AdaptSSR').mkdir(parents=True)
  script(tmp_path, 'exit 1')
  with pytest.raises(SettingsError, match=message):
    check(changed(**changes))


@pytest.mark.parametrize(
  ('mode', 'changes'),
  [
    ('quick', {'rounds': 1}),
    ('quick', {'ablation': True}),
    ('growth', {'gpu': True}),
    ('growth', REFERENCE),
    ('growth', CLUE),
    ('gpu', {'ablation': True}),
    ('objectives', CLUE | {'profile': True}),
  ],
)
def test_flags_that_a_measurement_cannot_use(mode, changes):
  settings = BenchmarkSettings(**{mode: True} | changes)
  assert settings.mode == mode
  with pytest.raises(SettingsError, match=f'does not go with --{mode}: leave'):
    refuse_unused(settings, [])


def test_flags_of_a_file_that_it_cannot_use_are_left_out(monkeypatch):
  seen = []

  def stop(settings):
    seen.append(settings)
    raise SettingsError('checked')

  monkeypatch.setattr(benchmark, 'check', stop)
  given = BenchmarkSettings(growth=True, objectives=('ecl',), quiet=True)
  with pytest.raises(SettingsError, match='checked'):
    benchmark.main(given)
  assert seen == [BenchmarkSettings(growth=True, quiet=True)]


def test_a_gpu_is_not_needed_to_try_its_flags():
  check(changed(gpu=True, quick=True))


def test_batches_that_devices_cannot_share_are_refused():
  with pytest.raises(SettingsError, match='--batch_size'):
    measure(changed(batch_size=15))


def script(folder, text):
  path = folder / 'script'
  path.write_text(f'#!/bin/sh\n{text}\n')
  path.chmod(0o755)
  return str(path)


def test_quick_measures_one_configuration(tmp_path, capsys, monkeypatch):
  # Two batches, which are encoded several times.
  monkeypatch.setattr('experiments.benchmarking.measure._USERS', 32)
  path = tmp_path / 'quick.json'
  settings = changed(
    quick=True,
    inference=True,
    profile=True,
    rounds=None,
    json=str(path),
    buckets=1,
  )
  benchmark.main(settings)
  found = json.loads(path.read_text())
  for name in ('users_per_second', 'encoded_users_per_second', 'gflops'):
    assert found[name] > 0
  assert found['users_per_second'] == pytest.approx(
    16 / np.median(found['step_seconds'])
  )
  assert len(found['step_seconds']) == len(found['encoding_seconds']) == 3
  assert 0 <= found['input_wait_share'] <= 1
  assert found['first_step_seconds'] > found['compile_seconds'] > 0
  assert found['temp_mib'] > 0
  assert (found['table_update'], found['num_items']) == ('dense', 40)
  shown = capsys.readouterr().out
  assert '40 items' in shown
  assert 'peak device memory' not in shown
  parts = {row['name']: row for row in found['parts']}
  shares = sum(row.get('share', 0) for row in parts.values())
  assert shares == pytest.approx(1)
  for name in ('optimizer', 'pooling', 'attention, linear maps'):
    assert any(name in part for part in parts), name
    assert name in shown
  maps = parts['attention, linear maps']
  assert maps['ms'] == pytest.approx(
    maps['forward'] + maps['again'] + maps['gradient']
  )
  assert min(maps['forward'], maps['again'], maps['gradient']) > 0


def measured(rate, **others):
  return {
    'users_per_second': rate,
    'step_seconds': [16 / rate] * 3,
    'batch_size': 16,
  } | others


def answered(monkeypatch, answer):
  """Answers cases by a function; returns those that ran, with their caches."""
  ran = []

  def run_case(case, settings, *, cache):
    ran.append((case, cache))
    return answer(case)

  monkeypatch.setattr(benchmark, 'run_case', run_case)
  monkeypatch.setattr(benchmark, 'check', lambda settings: None)
  return ran


def rows_of(shown):
  """The rows of all tables that are printed, by their first cell."""
  lines = [line.strip('|').split('|') for line in shown.splitlines()]
  cells = [[cell.strip() for cell in line] for line in lines if len(line) > 1]
  return {first: others for first, *others in cells}


def test_a_failed_case_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
  def answer(case):
    if '--buckets=1' in case.name:
      return {'error': 'killed'}
    rate = 8 if case.changes.get('table_update') == 'dense' else 16
    return measured(2 if case.who != cases.OURS else rate, backend='cpu')

  answered(monkeypatch, answer)
  path = tmp_path / 'new' / 'folder'
  runs = benchmark.main(
    changed(ablation=True, rounds=2, reference='there', workdir=str(path))
  )
  whole = json.loads((path / 'benchmark.json').read_text())
  assert whole['runs'] == runs
  assert whole['flags']['rounds'] == '2'
  turns = [(run['round'], run['who']) for run in runs[:6]]
  three = (cases.OURS, cases.PADDED, cases.TRIMMED)
  assert turns == [(i, who) for i in (0, 1) for who in three]
  shown = capsys.readouterr().out
  assert shown.count('--buckets=1, ours: killed') == 1
  rows = rows_of(shown)
  assert rows[f'ours / {cases.TRIMMED}: users/s'] == ['8.00 (8.00..8.00)']
  assert rows['--buckets=1'][0] == '-'
  assert rows['all off'][-1] == '0.50 (0.50..0.50)'


def test_ratios_compare_rates_of_the_same_round():
  rounds = [(10, 1), (30, 2), (20, None)]
  runs = []
  for number, rates in enumerate(rounds):
    for who, rate in zip((cases.OURS, cases.PADDED), rates, strict=True):
      found = measured(rate) if rate else {'error': 'none'}
      place = {'section': 'Pre-training', 'name': '9 items', 'who': who}
      runs.append(place | {'round': number} | found)
  shown = report(runs)
  assert '12.50 (10.00..15.00)' in shown
  assert '20 (10..30)' in shown
  assert f'9 items, {cases.PADDED}: none' in shown
  assert 'peak memory' not in shown


def test_each_case_changes_one_setting():
  base = {'num_items': ('40',)}
  (group,) = cases.ablation_cases(TINY, cpu=True)
  changes = [
    {k: v for k, v in case.changes.items() if k not in base} for case in group
  ]
  off = {
    'buckets': 1,
    'microbatch': 0,
    'table_update': 'dense',
    'cpu_devices': 1,
  }
  assert changes == [{}, *({k: v} for k, v in off.items()), off]
  (group,) = cases.ablation_cases(TINY, cpu=False)
  assert not any('cpu_devices' in case.changes for case in group)
  growth = list(cases.growth_cases(TINY))
  assert len({(case.section, case.name) for case in growth}) == len(growth)
  assert all(changed(**case.changes) for case in [*group, *growth])


def test_a_table_larger_than_memory_is_not_tried():
  huge = {'num_items': (str(10**12),)}
  assert 'GiB' in cases.too_large(changed(table_update='dense', **huge))
  assert not cases.too_large(changed(table_update='rows', **huge))
  assert not cases.too_large(changed(table_update='dense'))


def test_the_reference_gets_masked_positions_and_skips_the_warm_up():
  torch = types.SimpleNamespace(from_numpy=lambda array: array.tolist())
  peer = types.SimpleNamespace(torch=torch)
  masked = reference.positions(peer, ([2, 0], [], [1]))
  assert masked == ([0, 0, 2], [2, 0, 1])
  assert reference.positions(peer, ([], [])) == ([], [])
  seen = []
  assert len(timed(seen.append, range(0, 10, 2), warm_up=2)) == 3
  assert seen == [0, 2, 4, 6, 8]


@pytest.mark.slow
def test_the_command_runs_each_case_in_its_own_process(tmp_path):
  checkout = tmp_path / 'checkout'
  (checkout / 'Code' / 'AdaptSSR').mkdir(parents=True)
  found = json.dumps(measured(0.01))
  settings = changed(
    reference=str(checkout),
    reference_python=script(tmp_path, f"echo line; echo '{found}'"),
    json=str(tmp_path / 'all.json'),
    **PLAIN,
  )
  process = start('benchmark', settings)
  output, _ = process.communicate(timeout=120)
  assert process.returncode == 0, output
  ours, padded, trimmed = json.loads((tmp_path / 'all.json').read_text())[
    'runs'
  ]
  assert (ours['num_items'], ours['jax']) == (40, jax.__version__)
  assert ours['device']
  assert padded['users_per_second'] == trimmed['users_per_second'] == 0.01
  assert f'ours / {cases.PADDED}: users/s' in output
