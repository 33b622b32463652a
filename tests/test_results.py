"""The tables of the docs equal the committed numbers."""

import shutil
import subprocess
import sys

import pytest

from tests.tiny_runs import ROOT


def checked(root):
  return subprocess.run(
    [sys.executable, 'docs/results/tables.py', '--check'],
    cwd=root,
    capture_output=True,
    text=True,
    check=False,
  )


def test_the_tables_equal_the_numbers():
  done = checked(ROOT)
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('name', ['README.md', 'docs/results.md'])
def test_a_number_changed_by_hand_is_found(tmp_path, name):
  shutil.copytree(ROOT / 'docs', tmp_path / 'docs')
  shutil.copy(ROOT / 'README.md', tmp_path)
  page = tmp_path / name
  start = page.read_text().index('<!-- table')
  text = page.read_text()
  page.write_text(text[:start] + text[start:].replace(' ± 0.4', ' ± 0.3', 1))
  done = checked(tmp_path)
  assert done.returncode != 0
  assert f'{page.name}: a table differs from its numbers' in done.stderr
