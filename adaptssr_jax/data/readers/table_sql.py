"""SQL that splits lines into cells and parses cells as times.

A time is an integer, a floating-point number, or a timestamp in nanoseconds
since 1970. Nothing is rounded: an integer of more than 64 bits, or a timestamp
with more than nine digits of a second, is not accepted as a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import duckdb

from adaptssr_jax.data.rows import DataError

# Marks a line of CSV that SQL cannot split.
NOT_PLAIN = 'not plain'
# A line in which no cell holds a quotation mark or a comma.
_PLAIN = '(?:"[^",\r]*"|[^",\r]*)(?:,(?:"[^",\r]*"|[^",\r]*))*'
_CSV_CELLS = (
  "case when not contains(text, '\"') and not contains(text, chr(13)) "
  "then string_split(text, ',') "
  f"when regexp_full_match(text, '{_PLAIN}') "
  "then string_split(replace(text, '\"', ''), ',') end"
)
_JSON_IDS = "('VARCHAR', 'BIGINT', 'UBIGINT', 'BOOLEAN', 'NULL')"
# DuckDB also reads 1_0 and 0x10 as numbers, which are refused here.
_INTEGER = ' *[+-]?[0-9]+ *'
_REAL = (
  r' *[+-]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?'
  '|[0-9]+[eE][+-]?[0-9]+) *'
)
# ISO 8601: a date, and optionally hour, minute, second, fraction and zone.
_ISO = (
  '^ *([0-9]{4})-?([0-9]{2})-?([0-9]{2})(?:[T ]([0-9]{2})(?::?([0-9]{2})'
  '(?::?([0-9]{2})(?:[.,]([0-9]{1,9}))?)?)?'
  ' *(?:Z|([+-])([01][0-9]|2[0-3])(?::?([0-5][0-9]))?)?)? *$'
)
_PARTS = "['y', 'mo', 'd', 'h', 'm', 's', 'f', 'sign', 'zone_h', 'zone_m']"
_LOCAL = (
  "concat(iso.y, '-', iso.mo, '-', iso.d, ' ', rpad(iso.h, 2, '0'), ':', "
  "rpad(iso.m, 2, '0'), ':', rpad(iso.s, 2, '0'), '.', rpad(iso.f, 9, '0'))"
)
_MINUTES = (
  "(rpad(iso.zone_h, 2, '0')::bigint * 60 + rpad(iso.zone_m, 2, '0')::bigint) "
  "* case iso.sign when '-' then -1 else 1 end"
)
# Each column is computed only where the columns before it are null.
_OF_TEXT = (
  # Comparing the text of the number is faster than matching the pattern.
  'case when try_cast(t as bigint)::varchar = t or regexp_full_match(t, '
  f"'{_INTEGER}') then try_cast(t as bigint) end as number",
  f"case when number is null and regexp_full_match(t, '{_REAL}') "
  'and isfinite(t::double) then t::double end as real',
  'case when number is null and real is null then '
  f"regexp_extract(t, '{_ISO}', {_PARTS}) end as iso",
  f"case when iso.y <> '' then try(epoch_ns({_LOCAL}::timestamp_ns) - "
  f'{_MINUTES} * 60_000_000_000) end as moment',
)
_OF_TYPE = {
  'number': 'try_cast(t as bigint) as number',
  'real': 'case when isfinite(t) then t end as real',
  'moment': 'try(epoch_ns(t)) as moment',
}
_NO_TIME = (
  'neither a finite number (an integer of at most 63 bits) nor an ISO-8601 '
  'timestamp in 1678 to 2261; for another format, set time_format'
)
_NULL = {'number': 'bigint', 'real': 'double', 'moment': 'bigint'}


def csv_cells(lines: str, width: int) -> str:
  """SQL of `line`, `cells` and `wrong`, from a table of `line` and `text`.

  Lines that do not have `width` cells are marked as not plain; blank lines are
  left out.
  """
  return (
    f'select *, case when coalesce(len(cells) <> {width}, true) then '
    f'{quoted(NOT_PLAIN)} end as wrong from (select line, {_CSV_CELLS} as '
    f"cells from {lines} where text <> '')"
  )


def json_cells(lines: str, names: Sequence[str], ids: Sequence[str]) -> str:
  """As `csv_cells`, for JSON lines; cells are the values of `names`.

  Values of `ids`, the first of `names`, must be texts, integers or booleans.
  """
  escaped = [name.replace('~', '~0').replace('/', '~1') for name in names]
  pointers = [quoted(f'/{name}') for name in escaped]
  wrong = [
    "when kinds is null then 'malformed JSON, or half a surrogate pair'",
    "when kinds[1] <> 'OBJECT' then 'not a JSON object; write one per line'",
  ]
  for at, name in enumerate(ids, 1):
    reason = f'column {name!r} is no text, integer or boolean, but '
    # To DuckDB, an integer of more than 64 bits is a DOUBLE with all digits.
    wrong.append(
      f'when kinds[{at + 1}] not in {_JSON_IDS} and not regexp_full_match('
      f"cells[{at}], '-?[0-9]+') then {quoted(reason)} || kinds[{at + 1}]"
    )
  kinds = ', '.join(["''", *pointers[: len(ids)]])
  return (
    f'select line, cells, case {" ".join(wrong)} end as wrong from '
    "(select line, kinds, case when kinds[1] = 'OBJECT' then "
    f'text->>[{", ".join(pointers)}] end as cells from (select line, text, '
    f'try(json_type(text, [{kinds}])) as kinds from {lines} '
    r"where not regexp_full_match(text, '\s*')))"
  )


def quoted(text: str) -> str:
  """Quotes a text for SQL."""
  escaped = text.replace("'", "''")
  return f"'{escaped}'"


def check_time_format(time_format: str) -> None:
  """Raises `DataError` for an invalid `strptime` format; '' is valid."""
  try:
    if time_format:
      duckdb.execute(f"select try_strptime('', {quoted(time_format)})")
  except duckdb.Error as error:
    raise DataError(
      f'the time format {time_format!r} cannot be used: {error}'
    ) from None


def with_times(query: str, kind: str, time_format: str = '') -> str:
  """Adds the columns `number`, `real` and `moment`, of which one is not null.

  All three are null for a cell that is not a time.

  Args:
    query: a `select` with the column `t`, the cells of times.
    kind: the kind of these cells: 'text', 'number', 'real' or 'moment'.
    time_format: a `strptime` format, for text that is neither a number nor
      ISO 8601.
  """
  if time_format:
    parsed = f'try_strptime(t::varchar, {quoted(time_format)})'
    levels = [f'try(epoch_ns({parsed})) as moment']
  else:
    levels = _OF_TEXT if kind == 'text' else [_OF_TYPE[kind]]
  present = {level.rpartition(' ')[2] for level in levels}
  nulls = [
    f'null::{type_} as {name}'
    for name, type_ in _NULL.items()
    if name not in present
  ]
  for level in [*levels, *nulls]:
    query = f'select *, {level} from ({query})'
  return query


def wrong_cells(
  texts: Mapping[str, str], time: str | None, time_format: str
) -> str:
  """SQL of the error of a row: `wrong`, an empty cell, or an invalid time.

  Only a label may be empty.
  """
  filled = dict(texts) | ({'t': time} if time else {})
  checks = [
    f'when {name} is null then ' + quoted(f'column {column!r} is empty')
    for name, column in filled.items()
    if name != 'label'
  ]
  if time:
    form = f'not in the format {time_format}' if time_format else _NO_TIME
    checks.append(
      'when coalesce(number, moment) is null and real is null then '
      "'time ''' || left(t::varchar, 80) || " + quoted(f"' is {form}")
    )
  return f'case when wrong is not null then wrong {" ".join(checks)} end'


def columns_of(where: str) -> list[str]:
  """The columns in a condition in SQL; `DataError` if it cannot be parsed."""
  if not where:
    return []
  error, statements, names = duckdb.execute(
    "select tree->>'error_message', json_array_length(tree, '/statements'), "
    "tree->>'$..column_names[0]' from (select json_serialize_sql($1) as tree)",
    [f'select 1 where (\n{where}\n)'],
  ).fetchone()
  if error or statements > 1:
    raise wrong_condition(where, error or 'these are several statements')
  names = list(dict.fromkeys(names))
  if len({name.lower() for name in names}) < len(names):
    raise wrong_condition(
      where, 'to SQL, columns whose names differ only in case are the same'
    )
  return names


def with_condition(query: str, where: str, own: Mapping[str, str]) -> str:
  """Leaves out the rows of a `select` for which a condition is not true.

  Args:
    where: the condition, which names columns of the file.
    own: {column of the file: column of the `select`}.
  """
  named = ['*']
  for name in columns_of(where):
    escaped = name.replace('"', '""')
    named.append(f'{own[name]} as "{escaped}"')
  return (
    f'from (select {", ".join(named)} from ({query})) '
    f'where (\n{where}\n) or __wrong is not null'
  )


def wrong_condition(where: str, reason: object) -> DataError:
  """The error for a condition that cannot be used."""
  return DataError(
    f'the condition {where!r} cannot be used: {reason}; text is written as '
    "'view', and numbers of CSV and JSON lines, whose columns are text, are "
    'compared as in rating::double > 3'
  )
