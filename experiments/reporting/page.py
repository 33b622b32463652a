"""The page of a report: what its sections hold, and its template."""

from collections.abc import Iterable, Sequence
from importlib import resources
from typing import NamedTuple

import jinja2

from experiments.reporting.charts import COLORS

# The command recognises its own pages by this name.
GENERATOR = 'experiments.report'


class Table(NamedTuple):
  """A table; the first cell of each row is a header."""

  caption: str
  head: Sequence[str]
  rows: Sequence[Sequence[str]]
  is_text: bool = False  # whether cells are text, which may have several lines


class Chart(NamedTuple):
  """A picture with a caption."""

  svg: str
  label: str  # what it shows, for those who do not see it
  name: str = ''  # begins the caption, in bold
  caption: str = ''


class Section(NamedTuple):
  """A section; what it does not hold is left out of the page."""

  title: str
  note: str = ''
  html: str = ''  # without external resources
  legend: Sequence[str] = ()  # the names of the colours of its charts
  charts: Sequence[Chart] = ()
  tables: Sequence[Table] = ()
  folded: Table | None = None  # shown when a reader asks for it


def render(
  title: str, sections: Iterable[Section], *, refresh: float | None = None
) -> str:
  """Renders a complete page, which loads no other files.

  Args:
    refresh: seconds after which a browser loads the page again; None: never.
  """
  text = resources.files(__package__).joinpath('page.html').read_text('utf-8')
  template = jinja2.Template(
    text, autoescape=True, trim_blocks=True, lstrip_blocks=True
  )
  return template.render(
    title=title,
    sections=sections,
    refresh=refresh and max(1, round(refresh)),
    generator=GENERATOR,
    colors=COLORS,
  )
