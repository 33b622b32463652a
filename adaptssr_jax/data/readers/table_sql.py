"""SQL that cuts lines into cells, and cells into times.

A time is an integer, a floating-point number, or a moment, in nanoseconds since
1970. Nothing is rounded: an integer of more than 64 bits and a fraction of more
than nine digits are none of these.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import duckdb

from adaptssr_jax.data.rows import DataError

# What is said to be wrong with a line of CSV that has to be read by itself.
NOT_PLAIN = 'not plain'
# All cells of a line, where none holds a quotation mark or a comma.
_PLAIN = '(?:"[^",\r]*"|[^",\r]*)(?:,(?:"[^",\r]*"|[^",\r]*))*'
_CSV_CELLS = (
  "case when not contains(text, '\"') and not contains(text, chr(13)) "
  "then string_split(text, ',') "
  f"when regexp_full_match(text, '{_PLAIN}') "
  "then string_split(replace(text, '\"', ''), ',') end"
)
_JSON_IDS = "('VARCHAR', 'BIGINT', 'UBIGINT', 'BOOLEAN', 'NULL')"
# What DuckDB takes for numbers besides, such as 1_0 and 0x10, is not one here.
_INTEGER = ' *[+-]?[0-9]+ *'
_REAL = (
  r' *[+-]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?'
  '|[0-9]+[eE][+-]?[0-9]+) *'
)
# ISO 8601: a date, and if need be an hour, minute, second, fraction and zone.
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
# Each of these looks only at what those before it have left.
_OF_TEXT = (
  # That the text comes back is quicker to see than that it matches.
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
  'neither a finite number, of at most 63 bits if it is an integer, nor an '
  'ISO-8601 timestamp in 1678 to 2261; another form is told by time_format'
)
_NULL = {'number': 'bigint', 'real': 'double', 'moment': 'bigint'}


def csv_cells(lines: str, width: int) -> str:
  """SQL of `line`, its `cells` and what is `wrong`, from `line` and `text`.

  A line must have `width` cells; blank ones are left out.
  """
  return (
    f'select *, case when coalesce(len(cells) <> {width}, true) then '
    f'{quoted(NOT_PLAIN)} end as wrong from (select line, {_CSV_CELLS} as '
    f"cells from {lines} where text <> '')"
  )


def json_cells(lines: str, names: Sequence[str], ids: Sequence[str]) -> str:
  """The same of JSON lines: the cells of these names, first those of ids."""
  escaped = [name.replace('~', '~0').replace('/', '~1') for name in names]
  pointers = [quoted(f'/{name}') for name in escaped]
  wrong = [
    "when kinds is null then 'malformed JSON, or half a surrogate pair'",
    "when kinds[1] <> 'OBJECT' then 'not a JSON object'",
  ]
  for at, name in enumerate(ids, 1):
    reason = f'column {name!r} is no text, integer or boolean, but '
    # An integer of more than 64 bits is a DOUBLE, whose text is as written.
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
  """A text in SQL."""
  escaped = text.replace("'", "''")
  return f"'{escaped}'"


def check_time_format(time_format: str) -> None:
  """Raises `DataError` for what is no format of `strptime`; none is one."""
  try:
    if time_format:
      duckdb.execute(f"select try_strptime('', {quoted(time_format)})")
  except duckdb.Error as error:
    raise DataError(
      f'the time format {time_format!r} cannot be used: {error}'
    ) from None


def with_times(query: str, kind: str, time_format: str = '') -> str:
  """Adds the columns `number`, `real` and `moment`, null in all but one.

  Args:
    query: SQL of a `select` with the column `t`, the cells of times.
    kind: what those hold: 'text', 'number', 'real' or 'moment'.
    time_format: of `strptime`, for text that is neither a number nor ISO 8601.
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
  texts: Mapping[str, str],
  time: str | None,
  optional: Collection[str],
  time_format: str,
) -> str:
  """SQL of what is wrong with a row: `wrong`, or an empty cell or no time."""
  filled = dict(texts) | ({'t': time} if time else {})
  checks = [
    f'when {name} is null then ' + quoted(f'column {column!r} is empty')
    for name, column in filled.items()
    if name not in optional
  ]
  if time:
    form = f'not of the form {time_format}' if time_format else _NO_TIME
    checks.append(
      'when coalesce(number, moment) is null and real is null then '
      "'time ''' || left(t::varchar, 80) || " + quoted(f"' is {form}")
    )
  return f'case when wrong is not null then wrong {" ".join(checks)} end'


def columns_of(where: str) -> list[str]:
  """The columns that a condition in SQL names; `DataError` if it is none."""
  if not where:
    return []
  error, statements, names = duckdb.execute(
    "select tree->>'error_message', json_array_length(tree, '/statements'), "
    "tree->>'$..column_names[0]' from (select json_serialize_sql($1) as tree)",
    [f'select 1 where (\n{where}\n)'],
  ).fetchone()
  if error or statements > 1:
    raise wrong_condition(where, error or 'these are several statements')
  return list(dict.fromkeys(names))


def with_condition(query: str, where: str, own: Mapping[str, str]) -> str:
  """Leaves out the rows of a `select` for which a condition is not true.

  Args:
    own: the names in the `select` of the columns that the condition may name.
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
  """What is wrong with a condition of --where."""
  return DataError(
    f'the condition {where!r} cannot be used: {reason}; text is written as '
    "'view', and numbers of CSV and JSON lines, whose columns are text, are "
    'compared as in rating::double > 3'
  )
