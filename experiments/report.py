r"""Shows runs, comparisons, similarities and user vectors as one HTML page.

  python -m experiments.report runs/one runs/other

The page loads nothing from elsewhere. It shows the contents of the folders:

  a run          its settings, a curve of each metric that it logs, and its
                 result; several runs share the charts
  a comparison   its tables
  similarities   the results of experiments.similarity, also inside a run
  vectors        a map of the users, and the nearest users of some of them, for
                 files of experiments.embed in a folder, or those of --vectors

  python -m experiments.report runs/one --vectors=users.parquet \
    --task=gender --users=17,42

colours the users by a task of the run's data set, which is read from where the
run read it, unless flags of the data are given.

  python -m experiments.report runs/one --follow

writes the page again whenever a run logs something, so that a browser shows the
progress of training, and ends when the runs end.

  python -m experiments.report runs/minutes/* --picture=minutes.svg

also draws the quality of frozen vectors over the seconds of pre-training.
"""

from experiments.flags.small_commands import ReportSettings
from experiments.run.command import run

if __name__ == '__main__':
  run('experiments.report', ReportSettings)

import pathlib
import time
from collections.abc import Sequence
from typing import NamedTuple

from adaptssr_jax.files import atomic_path
from experiments.flags.binder import SettingsError
from experiments.reporting.measured import (
  COMPARISON,
  comparison_section,
  draw_minutes,
  similarity_section,
)
from experiments.reporting.page import GENERATOR, Section, render
from experiments.reporting.runs import names_of, read_run, run_sections
from experiments.reporting.users import classes_of_users, users_section
from experiments.run.interruption import Interrupted
from experiments.run.outputs import check_new
from experiments.run.process import print_line, print_result_line
from experiments.run.vector_files import has_vectors
from experiments.run.workdir import (
  METRICS,
  SIMILARITIES,
  is_in_use,
  saved_flags,
)


class Found(NamedTuple):
  """The folders and the files of vectors that are shown, by name."""

  runs: dict[str, pathlib.Path]
  comparisons: dict[str, pathlib.Path]
  similarities: dict[str, pathlib.Path]
  vectors: dict[str, pathlib.Path]


def main(settings: ReportSettings) -> pathlib.Path:
  """Writes the page, and returns its path."""
  found, path = find(settings), output_of(settings)
  if settings.picture:
    check_new(pathlib.Path(settings.picture), flag='picture')
  if settings.follow:
    follow(settings, found, path)
    # A comparison writes its tables when it ends.
    found = find(settings)
  write_page(path, found, other_sections(settings, found))
  print_result_line(f'report: {path}')
  if settings.picture:
    runs = [read_run(*named) for named in found.runs.items()]
    for line in draw_minutes(runs, pathlib.Path(settings.picture)):
      print_result_line(line)
  return path


def find(settings: ReportSettings) -> Found:
  """Finds what the folders and files of the flags hold.

  Raises:
    SettingsError: If a folder does not exist, or holds nothing to show.
  """
  folders = [pathlib.Path(folder) for folder in dict.fromkeys(settings.runs)]
  found = Found({}, {}, {}, {})
  for folder in folders:
    if not folder.is_dir():
      raise SettingsError(f'--runs={folder}: there is no such folder')
  for name, folder in zip(names_of(folders), folders, strict=True):
    vectors = [path for path in sorted(folder.iterdir()) if _may_be_shown(path)]
    found.vectors.update({str(path): path for path in vectors})
    if (folder / COMPARISON).exists():
      found.comparisons[name] = folder
    elif (folder / SIMILARITIES).exists():
      found.similarities[name] = folder
    elif saved_flags(folder):
      found.runs[name] = folder
    elif not vectors:
      raise SettingsError(
        f'--runs={folder} holds no run, comparison, similarities or vectors: '
        'give the --workdir of a command'
      )
    for inside in sorted(folder.glob(f'*/{SIMILARITIES}')):
      found.similarities[f'{name}/{inside.parent.name}'] = inside.parent
  given = map(pathlib.Path, settings.vectors)
  found.vectors.update({str(path): path for path in given})
  return found


def _may_be_shown(path: pathlib.Path) -> bool:
  """Whether a file that no flag names holds user vectors."""
  try:
    return path.suffix in ('.parquet', '.npz') and has_vectors(path)
  except SettingsError:  # The file is damaged, or holds something else.
    return False


def output_of(settings: ReportSettings) -> pathlib.Path:
  """The path of the page.

  Raises:
    SettingsError: If its folder does not exist, or the path exists and is not a
      page of this command.
  """
  first = pathlib.Path((*settings.runs, *settings.vectors)[0])
  folder = first if settings.runs else first.parent
  path = pathlib.Path(settings.output or folder / 'report.html')
  if not path.parent.is_dir():
    raise SettingsError(f'--output={path}: there is no such folder; create it')
  try:
    with path.open(errors='replace') as file:
      is_own = f'content="{GENERATOR}"' in file.read(500)
  except FileNotFoundError:
    return path
  except OSError:  # For example a folder.
    is_own = False
  if not is_own:
    raise SettingsError(
      f'--output={path} exists, and is not a page of this command: choose '
      'another name'
    )
  return path


def other_sections(settings: ReportSettings, found: Found) -> list[Section]:
  """All sections but those of runs, which change while the runs train."""
  if not found.vectors and (settings.task or settings.users):
    raise SettingsError(
      '--task and --users need user vectors, and no folder holds any: give '
      '--vectors=FILE'
    )
  flags = [saved_flags(folder) for folder in found.runs.values()]
  classes = classes_of_users(settings, flags[0] if flags else {})
  return [
    *(comparison_section(*named) for named in found.comparisons.items()),
    *(similarity_section(*named) for named in found.similarities.items()),
    *(
      users_section(*named, classes, settings)
      for named in found.vectors.items()
    ),
  ]


def write_page(
  path: pathlib.Path,
  found: Found,
  others: Sequence[Section],
  *,
  refresh: float | None = None,
) -> None:
  """Writes the page; if that fails, the file before stays as it is."""
  runs = [read_run(*named) for named in found.runs.items()]
  title = f'Report: {", ".join(name for kind in found for name in kind)}'
  text = render(title, [*run_sections(runs), *others], refresh=refresh)
  try:
    with atomic_path(path) as aside:
      # A name of a folder need not be UTF-8.
      aside.write_bytes(text.encode(errors='replace'))
  except OSError as error:
    raise SettingsError(f'--output={path} was not written: {error}') from error


def follow(settings: ReportSettings, found: Found, path: pathlib.Path) -> None:
  """Writes the page whenever a run has logged something, until all have ended.

  A comparison ends with its last run. Ctrl-C also stops following.
  """
  others, before = other_sections(settings, found), None
  try:
    while True:
      is_going = any(is_in_use(pathlib.Path(run)) for run in settings.runs)
      logs = [folder / METRICS for folder in found.runs.values()]
      now = [log.stat().st_size if log.exists() else 0 for log in logs]
      if now != before:
        write_page(path, found, others, refresh=settings.follow_every)
        print_line(f'{path}: written')
      before = now
      if not is_going:
        return
      time.sleep(settings.follow_every)
  except Interrupted:
    pass
