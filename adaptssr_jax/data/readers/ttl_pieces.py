"""The TTL data set with Beam: lines are parsed on any machine, numbered on one.

Each span of the files first tells which ids it has; with the ids numbered and
the lines counted, it then becomes a piece of rows.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from adaptssr_jax.data.pieces import Pieces, load, save, save_rows
from adaptssr_jax.data.ragged import Ragged
from adaptssr_jax.data.readers.ttl_lines import (
  Block,
  Kind,
  Numbering,
  Span,
  read_span,
  spans_of,
)
from adaptssr_jax.data.readers.ttl_rows import (
  check_known,
  digest,
  user_ids,
  with_tails,
)
from adaptssr_jax.data.rows import Rows, Vocabulary

# Bytes of a span: a second's work.
_SPAN = 1 << 26


class _Work(NamedTuple):
  """A span, and what is before it.

  Args:
    span: of the file.
    survey: the file of what it tells.
    piece: the file of its rows.
    first_line: number of its first line, from 1.
    first_row: number of the first row that its lines become, from 0.
  """

  span: Span
  survey: str
  piece: str
  first_line: int = 0
  first_row: int = 0


class _Known(NamedTuple):
  """What is numbered: items, labels, and the digests and lines of users."""

  items: Numbering
  labels: Numbering
  users: dict[str, np.ndarray]


def number_lines(
  pretrain: pathlib.Path,
  task: pathlib.Path | None,
  *,
  kind: Kind,
  split: Callable[[int], dict[str, np.ndarray]],
  run: Callable[..., None],
  folder: pathlib.Path,
) -> Pieces:
  """Makes the pieces of a data set.

  Args:
    pretrain: the file of pre-training.
    task: that of a task; None for pre-training itself.
    kind: of the lines of the task.
    split: which of so many rows go to each split.
    run: calls a function with each of several arguments, on any machine:
      `run(function, arguments, folder)`.
    folder: for the pieces.

  Returns:
    The pieces.

  Raises:
    DataError: a line is wrong; the message has the file, the line and why.
  """
  users = _work(pretrain, 'pretrain', folder)
  lines = users if task is None else _work(task, kind, folder)
  run(_survey, users if task is None else users + lines, folder / 'surveyed')
  items = _join(users, 'items')
  tails = Numbering() if task is None else _join(lines, 'tails')
  known = folder / 'known.npz'
  save(known, items=items.ids(), tails=tails.ids())
  if task is not None:
    save(folder / 'users.npz', **_last_lines(users))
  lines, num_rows = _counted(lines)
  number = functools.partial(_number, known=str(known), kind=kind)
  run(number, lines, folder / 'numbered')
  return Pieces(
    paths=[work.piece for work in lines],
    parts=split(num_rows),
    vocabulary=Vocabulary(items.names(), tails.names()),
  )


def _work(path: pathlib.Path, kind: Kind, folder: pathlib.Path) -> list[_Work]:
  return [
    _Work(
      span,
      survey=str(folder / f'{path.name}-{at}.survey.npz'),
      piece=str(folder / f'{path.name}-{at}.rows.npz'),
    )
    for at, span in enumerate(spans_of(path, kind, _SPAN))
  ]


def _survey(work: _Work) -> None:
  """Tells the ids of a span, in the order they appear, and its users."""
  items, tails, digests, lines, rows = Numbering(), Numbering(), [], 0, 0
  for block in read_span(work.span):
    items.add(block.items.values)
    tails.add(block.tails.values)
    lines += len(block.items)
    rows += len(block.tails.values)
    if work.span.kind == 'pretrain':
      digests += _digests(block)
  save(
    work.survey,
    items=items.ids(),
    tails=tails.ids(),
    digests=np.array(digests, 'S16'),
    counts=np.array([lines, rows if work.span.kind != 'pretrain' else lines]),
  )


def _digests(block: Block) -> list[bytes]:
  return [digest(block.items[row]) for row in range(len(block.items))]


def _join(works: Sequence[_Work], column: str) -> Numbering:
  numbering = Numbering()
  for work in works:
    numbering.add(load(work.survey, column)[column])
  return numbering


def _last_lines(users: Sequence[_Work]) -> dict[str, np.ndarray]:
  """The last line of each sequence, sorted by its digest."""
  digests = np.concatenate(
    [load(work.survey, 'digests')['digests'] for work in users]
  )
  order = np.argsort(digests, kind='stable')
  digests = digests[order]
  last = np.append(digests[1:] != digests[:-1], True)
  return {'digests': digests[last], 'lines': order[last] + 1}


def _counted(works: Sequence[_Work]) -> tuple[list[_Work], int]:
  """The work with its first lines and rows, and the number of all rows."""
  counts = np.array([load(work.survey, 'counts')['counts'] for work in works])
  before = np.cumsum(counts, axis=0) - counts
  counted = [
    work._replace(first_line=int(lines) + 1, first_row=int(rows))
    for work, (lines, rows) in zip(works, before, strict=True)
  ]
  return counted, int(counts[:, 1].sum())


def _number(work: _Work, *, known: str, kind: Kind) -> None:
  """Makes the piece of a span."""
  users = {}
  if kind != 'pretrain':
    users = load(pathlib.Path(work.piece).with_name('users.npz'))
  numbered = _Known(Numbering(), Numbering(), users)
  numbered.items.add(load(known, 'items')['items'])
  numbered.labels.add(load(known, 'tails')['tails'])
  parts, line = [], work.first_line
  for block in read_span(work.span):
    parts.append(_rows(work, block, line, numbered, kind))
    line += len(block.items)
  rows = _concatenated(parts)
  labelled = rows.items if rows.targets is None else rows.targets.values
  numbers = work.first_row + np.arange(len(labelled))
  save_rows(work.piece, rows, numbers)


def _rows(
  work: _Work, block: Block, line: int, known: _Known, kind: Kind
) -> Rows:
  path = pathlib.Path(work.span.path)
  numbers = Ragged(known.items.find(block.items.values), block.items.offsets)
  if kind == 'pretrain':
    return Rows([str(line + row) for row in range(len(numbers))], numbers)
  check_known(path, line, block.items, numbers)
  users = _users(known.users, block)
  rows = Rows(user_ids(path, line, block.items, users), numbers)
  targets = known.labels.find(block.tails.values) - np.int32(1)
  tails = Ragged(targets, block.tails.offsets)
  rows = with_tails(rows, tails, kind)
  if kind == 'ranking':
    # That of the line from 0, as without Beam.
    number = np.arange(line - 1, line - 1 + len(tails), dtype=np.int32)
    rows = rows._replace(user_number=number)
  return rows


def _users(known: dict[str, np.ndarray], block: Block) -> dict[bytes, str]:
  """The last lines of those sequences of a block that have one."""
  own = _digests(block)
  found = np.array(own, 'S16')
  place = np.searchsorted(known['digests'], found)
  place = np.minimum(place, len(known['digests']) - 1)
  is_known = known['digests'][place] == found
  return {
    key: str(known['lines'][at])
    for key, at, there in zip(own, place, is_known, strict=True)
    if there
  }


def _concatenated(parts: list[Rows]) -> Rows:
  """All rows as one; there may be none."""
  if not parts:
    return Rows([], Ragged.from_rows([]))
  return Rows(*(_joined(columns) for columns in zip(*parts, strict=True)))


def _joined(parts: Sequence[Any]) -> Any:
  """The parts of one column as one; None if it is no column of theirs."""
  if parts[0] is None:
    return None
  if isinstance(parts[0], list):
    return [user for part in parts for user in part]
  if isinstance(parts[0], np.ndarray):
    return np.concatenate(parts)
  return Ragged.from_lengths(
    np.concatenate([part.values for part in parts]),
    np.concatenate([part.lengths for part in parts]),
  )
