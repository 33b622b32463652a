"""The benchmark of all objectives against the same in plain PyTorch."""

import ast
import dataclasses
import json
import pathlib
import sys

import pytest

from experiments import benchmark
from experiments.benchmarking import cases, processes
from experiments.benchmarking.measure import measure
from experiments.benchmarking.options import check
from experiments.flags.objectives import TRAITS
from tests.test_benchmark import (
  answered,
  changed,
  measured,
  rows_of,
  script,
)
from tests.tiny_runs import PLAIN

# A script that pretends to be a Python with torch, and returns its arguments.
STUB = """
import json, sys
import numpy as np
if sys.argv[1] == '-c':
  sys.exit()
given = json.loads(sys.argv[2])
arrays = {name: x.shape for name, x in np.load(given['arrays']).items()}
print('a line of PyTorch')
print(json.dumps({'users_per_second': 4.0, 'step_seconds': [4.0] * 3,
                  'batch_size': 16, 'peak_mib': 70.0, 'given': given,
                  'script': sys.argv[1], 'shapes': arrays}))
"""


@pytest.fixture(name='stub')
def python_without_torch(tmp_path):
  (tmp_path / 'stub.py').write_text(STUB)
  return script(tmp_path, f'exec {sys.executable} {tmp_path}/stub.py "$@"')


def test_objectives_alternate_with_pytorch_and_resume(
  tmp_path, monkeypatch, capsys
):
  lost = [('clue', cases.PYTORCH)]

  def answer(case):
    if (case.name, case.who) in lost:
      return {'error': 'killed'}
    rate = 8 if case.who == cases.OURS else 4
    return measured(rate, gflops=3.0, peak_mib=70.0)

  ran = answered(monkeypatch, answer)
  settings = changed(
    objectives=('clue', 'ptum'), rounds=2, workdir=str(tmp_path)
  )
  benchmark.main(settings)
  two = [cases.OURS, cases.PYTORCH]
  turns = [(case.name, case.who) for case, _ in ran]
  assert turns == [(name, who) for name in ('clue', 'ptum') for who in two * 2]
  shown = capsys.readouterr().out
  assert 'Objectives, 40 items, clue, PyTorch: killed' in shown
  ran.clear()
  lost.clear()
  runs = benchmark.main(dataclasses.replace(settings, rounds=3))
  # The failed case and the new round.
  assert [case.name for case, _ in ran] == ['clue'] * 4 + ['ptum'] * 2
  assert json.loads((tmp_path / 'objectives.json').read_text())['runs'] == runs
  assert rows_of(capsys.readouterr().out)['ptum'] == [
    *('8 (8..8)', '3', '70', '4 (4..4)', '70', '2.00 (2.00..2.00)')
  ]


def test_pytorch_gets_our_batches(tmp_path, stub):
  settings = changed(
    objectives=('all',), reference_python=stub, cpu_devices=2, embed_dim=8
  )
  check(settings)
  assert settings.objective_names == tuple(TRAITS)
  groups = cases.objective_cases(settings)
  peers = {theirs.name: theirs for _, theirs in groups}
  assert peers.keys() == TRAITS.keys()
  for name, shapes in {
    'adaptssr': {'items': [5, 16, 10]},
    'causal_items': {'items': [5, 16, 10]},
    'duorec': {'items': [5, 16, 10], 'partner_items': [5, 16, 10]},
    'coserec': {'items': [5, 16, 10], 'similar': [42, 1]},
    'idicl': {'items': [5, 16, 10]},
  }.items():
    found = processes.run_case(peers[name], settings, cache='off')
    assert found['users_per_second'] == 4
    assert found['shapes'] == shapes
    given = found['given']
    assert (given['objective'], given['threads']) == (name, 2)
    encoder = given['encoder']
    assert (encoder['num_items'], encoder['max_length']) == (40, 12)
    assert encoder['causal'] == (name == 'causal_items')
    assert encoder['num_queries'] == (4 if name == 'idicl' else 1)
  written = ast.parse(pathlib.Path(found['script']).read_text())
  names = {node.name for node in ast.walk(written) if hasattr(node, 'name')}
  assert TRAITS.keys() <= names


@pytest.mark.parametrize(
  'objective',
  [
    'causal_items',
    # Each of these needs more data than the items of a user.
    pytest.param('coserec', marks=pytest.mark.slow),
    pytest.param('duorec', marks=pytest.mark.slow),
    pytest.param('ptum', marks=pytest.mark.slow),
  ],
)
def test_each_objective_is_measured(objective):
  found = measure(changed(objectives=(objective,), cpu_time=True, **PLAIN))
  assert found['users_per_second'] > 0
  assert found['gflops'] > 0


@pytest.mark.slow
def test_each_case_is_measured_in_its_own_process(tmp_path, stub, capsys):
  settings = changed(
    objectives=('pooled_items',),
    reference_python=stub,
    json=str(tmp_path / 'all.json'),
    **PLAIN | {'buckets': 2},
  )
  ours, theirs = benchmark.main(settings)
  assert json.loads((tmp_path / 'all.json').read_text())['runs'] == [
    ours,
    theirs,
  ]
  assert (ours['who'], theirs['who']) == (cases.OURS, cases.PYTORCH)
  assert ours['gflops'] > 0
  assert 'ours / PyTorch: users/s' in capsys.readouterr().out
