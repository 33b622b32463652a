"""The notebook, run cell by cell."""

import os

import nbformat
import pytest
from nbclient import NotebookClient

from tests.tiny_runs import ROOT

PATH = ROOT / 'examples' / 'own_logs.ipynb'


@pytest.fixture(scope='module')
def notebook():
  return nbformat.read(PATH, as_version=4)


def test_it_is_kept_without_outputs_and_each_cell_is_explained(notebook):
  cells = notebook.cells
  code = [at for at, cell in enumerate(cells) if cell.cell_type == 'code']
  assert len(code) == 5
  for at in code:
    assert not cells[at].outputs
    assert cells[at].execution_count is None
    assert cells[at - 1].cell_type == 'markdown'


@pytest.mark.slow
def test_vectors_find_similar_users_and_read_labels(notebook, tmp_path):
  # With fewer passes and a single program, which are half of the time.
  (cell,) = (cell for cell in notebook.cells if 'num_epochs=15,' in cell.source)
  cell.source = cell.source.replace(
    'num_epochs=15,', 'num_epochs=8, buckets=1, microbatch=0,'
  )
  environment = os.environ | {
    'JAX_NUM_CPU_DEVICES': '1',
    'PYTHONPATH': str(ROOT),
  }
  client = NotebookClient(
    notebook, timeout=None, resources={'metadata': {'path': str(tmp_path)}}
  )
  client.execute(env=environment)
  printed = ''.join(
    output.text
    for cell in notebook.cells
    if cell.cell_type == 'code'
    for output in cell.outputs
    if output.output_type == 'stream' and output.name == 'stdout'
  ).splitlines()
  words = next(line for line in printed if line.startswith('a nearest user'))
  near, anyone = (
    int(word.rstrip('%,')) for word in words.split() if '%' in word
  )
  assert near > 1.3 * anyone
  scores = {line[:24].strip(): float(line[24:]) for line in printed[-3:]}
  assert scores['vectors'] > scores['the most frequent plan'] + 0.2
  assert scores['vectors'] > scores['bag of items'] - 0.02
