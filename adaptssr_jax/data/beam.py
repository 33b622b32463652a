"""Preparing a data set with Apache Beam, on as many machines as it is given.

    data.load(builder, beam_options=['--runner=FlinkRunner', ...])

The examples are those that are made without Beam, in the same order. Each step
is a function of one piece of the source, which Beam runs wherever there is
room; what the pieces hand over are files in the data folder, so that all
machines have to share it and the source, under the same absolute paths, and
this package has to be installed on them.

Lines of `ttl` and files of `user_tables` are parsed, and their users put
together, on all machines. On the one that starts the pipeline remain: numbering
the items and labels; the order of the rows and the splits, which needs some 50
bytes a row; for a task of `ttl` also 24 bytes for each line of the pre-training
file; and at the end the memory-mapped arrays, which are copied through, not
held. The other data sets are small, or made: they are read there as a whole,
and Beam only encodes and writes the examples.
"""

from __future__ import annotations

import functools
import pathlib
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


def pipeline_options(options: Sequence[str] | None) -> Any:
  """The options as Beam wants them; None if there are none.

  Raises:
    DataError: Apache Beam is not installed.
  """
  return None if options is None else _options(_beam(), options)


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
    DataError: what the function raised for the first piece that is wrong.
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
    raise DataError(path.read_text())


def _attempt(
  piece: tuple[int, Any], *, function: Callable[[Any], None], folder: str
) -> None:
  # By file, because each runner has its own way to show an exception.
  number, argument = piece
  try:
    function(argument)
  except DataError as error:
    pathlib.Path(folder, f'{number:09}').write_text(str(error))


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
  return beam.options.pipeline_options.PipelineOptions(list(options))


def _beam() -> types.ModuleType:
  try:
    import apache_beam
    import apache_beam.options.pipeline_options
  except ImportError as error:
    raise DataError(
      f"--beam needs Apache Beam ({error}): pip install -e '.[beam]'"
    ) from None
  return apache_beam
