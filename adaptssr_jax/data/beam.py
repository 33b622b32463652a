"""Preparing a data set with Apache Beam, on as many machines as it is given.

    data.load(builder, beam_options=['--runner=FlinkRunner', ...])

The examples are those that are made without Beam, in the same order. Each step
is a function of one piece of the source, which Beam runs wherever there is
room; what the pieces hand over are files in the data folder, so that all
machines have to share it and the source, under the same absolute paths and as
the same user, and this package has to be installed on them.

Lines of `ttl` and files of `user_tables` are parsed, and their users put
together, on all machines. On the one that starts the pipeline remain: numbering
the items and labels; the order of the rows and the splits, which needs some 50
bytes a row; for a task of `ttl` also 24 bytes for each line of the pre-training
file; and at the end the memory-mapped arrays, which are copied through, not
held. The other data sets are small, or made: they are read there as a whole,
and Beam only encodes and writes the examples.
"""

from __future__ import annotations

import contextlib
import functools
import io
import pathlib
import shutil
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from adaptssr_jax.data.pieces import (
  Pieces,
  dealt_out,
  save_places,
  save_rows,
)
from adaptssr_jax.data.rows import DataError, Rows, Vocabulary

# Rows of a piece, of rows that are already in memory.
_BLOCK = 8192
# Unlike Beam's default, it never downloads a program and starts that instead.
_LOCAL_RUNNER = '--runner=FnApiRunner'
_MOST_REASON = 500
# What a worker may be wrong with, by the suffix of the file that tells it.
_ERRORS = {'.data': DataError, '.os': OSError}


def pipeline_options(options: Sequence[str] | None) -> Any:
  """The options as Beam wants them; None if there are none.

  Raises:
    DataError: Apache Beam is not installed, or has no such options.
  """
  if options is None:
    return None
  beam = _beam()
  reason = _objection(beam, options)
  if reason:
    raise DataError(
      f'--beam_options={",".join(options)} cannot be used: '
      f'{reason[:_MOST_REASON]}'
    )
  return _options(beam, options)


def for_each(
  function: Callable[[Any], None],
  pieces: Iterable[Any],
  folder: pathlib.Path,
  *,
  options: Sequence[str],
) -> None:
  """Calls a function of a module with every piece, on any machine, and waits.

  Args:
    function: leaves its result in a file; may be called twice with a piece.
    pieces: the arguments, which can be pickled.
    folder: to be made, for what goes wrong.
    options: of the pipeline.

  Raises:
    DataError, OSError: what the function raised for the first piece that is
      wrong.
  """
  beam = _beam()
  folder.mkdir()
  attempt = functools.partial(_attempt, function=function, folder=str(folder))
  with beam.Pipeline(options=_options(beam, options)) as pipeline:
    _ = (
      pipeline
      | beam.Create(list(enumerate(pieces)))
      | beam.Reshuffle()
      | beam.Map(attempt)
    )
  for path in sorted(folder.iterdir()):
    raise _ERRORS[path.suffix](path.read_text())


def _attempt(
  piece: tuple[int, Any], *, function: Callable[[Any], None], folder: str
) -> None:
  # By file, because each runner has its own way to show an exception.
  number, argument = piece
  try:
    function(argument)
  except tuple(_ERRORS.values()) as error:
    suffix = '.data' if isinstance(error, DataError) else '.os'
    pathlib.Path(folder, f'{number:09}{suffix}').write_text(str(error))


def generators(pieces: Pieces, folder: pathlib.Path) -> dict[str, Any]:
  """The examples of each split as Beam's transforms, for TFDS to write."""
  beam = _beam()
  places = str(folder / 'places.npy')
  save_places(places, pieces.parts)
  return {
    split: (
      beam.Create(list(pieces.paths))
      | beam.Reshuffle()
      | beam.FlatMap(functools.partial(dealt_out, places=places, split=at))
    )
    for at, split in enumerate(pieces.parts)
  }


def cut(
  splits: Mapping[str, Rows], vocabulary: Vocabulary, folder: pathlib.Path
) -> Pieces:
  """Rows that are in memory as pieces, numbered through all splits."""
  paths, parts, start = [], {}, 0
  for split, rows in splits.items():
    count = len(rows.items)
    for first in range(0, count, _BLOCK):
      block = np.arange(first, min(first + _BLOCK, count))
      paths.append(str(folder / f'{split}-{first}.npz'))
      save_rows(paths[-1], rows.take(block), start + block)
    parts[split] = np.arange(start, start + count)
    start += count
  return Pieces(paths, parts, vocabulary)


def _options(beam: types.ModuleType, options: Sequence[str]) -> Any:
  given = list(options)
  if not any(option.startswith('--runner=') for option in given):
    given.append(_LOCAL_RUNNER)
  return beam.options.pipeline_options.PipelineOptions(given)


def _objection(beam: types.ModuleType, options: Sequence[str]) -> str:
  """What Beam has against the options, or nothing."""
  for option in options:
    # Beam leaves it out, and with it what somebody wanted.
    if not option.startswith('--'):
      return f'{option!r} is none; write --NAME=VALUE, with commas between'
  said = io.StringIO()
  try:
    # Outside, because it may set up logging to what is then sys.stderr.
    parsed = _options(beam, options)
    with contextlib.redirect_stderr(said):
      known = parsed.get_all_options()
      given = parsed.get_all_options(retain_unknown_options=True)
      pipeline = beam.Pipeline(options=parsed)
  except SystemExit:
    return said.getvalue().strip().rpartition('error: ')[2] or 'it only helps'
  # A runner may be any class of any module.
  except Exception as error:
    return str(error)
  shutil.rmtree(pipeline.local_tempdir, ignore_errors=True)
  unknown = sorted(given.keys() - known.keys())
  # The server of such a runner has options of its own.
  portable = beam.runners.portability.portable_runner.PortableRunner
  if unknown and not isinstance(pipeline.runner, portable):
    return f'there is no option --{unknown[0].partition("=")[0]}'
  return ''


def _beam() -> types.ModuleType:
  try:
    import apache_beam
    import apache_beam.options.pipeline_options
    import apache_beam.runners.portability.portable_runner
  except ImportError as error:
    raise DataError(
      f"--beam needs Apache Beam ({error}): pip install -e '.[beam]'"
    ) from None
  return apache_beam
