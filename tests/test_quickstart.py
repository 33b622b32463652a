"""The lines that the quickstart prints from a comparison."""

import itertools

import pytest

from experiments import compare, quickstart

SHARES = dict(zip(quickstart.LABELS, (0.03, 0.1, 0.3), strict=True))


@pytest.fixture(scope='module')
def cells():
  """Accuracies that rise with the labels, and differ by row and split."""
  return [
    {
      'method': method,
      'task': task,
      'share': share,
      'split': split,
      'validation': {'accuracy': share + row / 100},
      'test': {'accuracy': share + row / 100 + split / 1000},
    }
    for (row, method), task, share, split in itertools.product(
      enumerate(quickstart.ROWS.values()),
      ('gender', 'age'),
      SHARES.values(),
      range(5),
    )
  ]


def test_it_compares_and_prints(cells, monkeypatch, tmp_path, capsys):
  asked = []

  def compared(settings):
    asked.append(settings)
    return {'cells': cells}

  monkeypatch.setattr(compare, 'main', compared)
  settings = quickstart.QuickstartSettings(workdir=str(tmp_path))
  assert quickstart.main(settings) == {'cells': cells}
  (found,) = asked
  assert set(found.methods) == set(quickstart.ROWS.values())
  assert found.modes == ('frozen',)
  # As many labels as the table says, of the 3,600 training rows.
  labels = [round(3600 * float(share)) for share in found.train_shares]
  assert tuple(labels) == quickstart.LABELS
  lines = capsys.readouterr().out.splitlines()
  assert f'age are in {tmp_path}/compare/results.md' in lines
  # 0.1 + 0.002 on average.
  assert lines[-5:] == [
    'vectors       validation        test   (accuracy)',
    'pretrained        0.1000      0.1020',
    '+ adaptssr        0.1100      0.1120',
    'bag               0.1200      0.1220',
    'random            0.1300      0.1320',
  ]
