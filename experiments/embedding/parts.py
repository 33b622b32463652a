"""Equal parts of the users, each encoded by a command of its own."""

from collections.abc import Sequence

from adaptssr_jax.data import Ragged, UserArrays
from experiments.flags.binder import SettingsError


def users_of_part(splits: Sequence[UserArrays], part: str) -> list[UserArrays]:
  """One of several equal parts of the users of all splits together.

  Args:
    splits: without labels and targets.
    part: 'I/N', the I-th of N parts; nothing for all users.

  Returns:
    The splits that have users of the part, cut to these; no array is copied.

  Raises:
    SettingsError: there are fewer users than parts.
  """
  if not part:
    return list(splits)
  number, count = map(int, part.split('/'))
  total = sum(len(users.items) for users in splits)
  if count > total:
    raise SettingsError(
      f'--part={part}: there are {total:,} users, so take at most as many parts'
    )
  begin, end = total * (number - 1) // count, total * number // count
  found = []
  for users in splits:
    first, last = max(begin, 0), min(end, len(users.items))
    if first < last:
      columns = (users.user_id, users.items)
      found.append(
        UserArrays(*(_cut(column, first, last) for column in columns))
      )
    begin, end = begin - len(users.items), end - len(users.items)
  return found


def _cut(rows: Ragged, first: int, last: int) -> Ragged:
  return Ragged(rows.values, rows.offsets[first : last + 1])
