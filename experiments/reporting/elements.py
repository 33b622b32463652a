"""HTML and SVG as trees of elements, which escape all text."""

import re
from collections.abc import Iterable, Sequence
from importlib import resources
from xml.etree.ElementTree import Element, indent, tostring

# The command recognises its own pages by this name.
GENERATOR = 'experiments.report'
# All characters that XML 1.0 does not allow, by its section 2.2.
_FORBIDDEN = re.compile('[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]')


def allowed(text: str) -> str:
  """Removes characters that XML forbids, such as control characters."""
  return _FORBIDDEN.sub('', text)


def tag(name: str, /, *content: Element | str, **attributes: object) -> Element:
  """Creates an element.

  In the names of attributes _ becomes -; a _ at the end is removed.

  Example:
    >>> tostring(tag('p', 'a < ', tag('b', 'c'), class_='d')).decode()
    '<p class="d">a &lt; <b>c</b></p>'
  """
  element = Element(
    name,
    {
      key.rstrip('_').replace('_', '-'): allowed(str(value))
      for key, value in attributes.items()
    },
  )
  for part in content:
    if not isinstance(part, str):
      element.append(part)
    elif len(element):
      element[-1].tail = (element[-1].tail or '') + allowed(part)
    else:
      element.text = (element.text or '') + allowed(part)
  return element


def table(
  caption: str,
  head: Sequence[str],
  rows: Iterable[Sequence[str]],
  **attributes: object,
) -> Element:
  """A table with a caption; the first cell of each row is a header."""
  lines = [
    tag('tr', tag('th', row[0], scope='row'), *(tag('td', c) for c in row[1:]))
    for row in rows
  ]
  return scrolled(
    tag(
      'table',
      tag('caption', caption),
      tag('thead', tag('tr', *(tag('th', c, scope='col') for c in head))),
      tag('tbody', *lines),
      **attributes,
    ),
    caption,
  )


def scrolled(content: Element, label: str) -> Element:
  """Puts content into a box that scrolls, also by the keyboard, if too wide."""
  return tag(
    'div',
    content,
    class_='scroll',
    tabindex=0,
    role='region',
    aria_label=label,
  )


def figure(
  picture: Element, *caption: Element | str, **attributes: object
) -> Element:
  """A picture with a caption."""
  return tag('figure', picture, tag('figcaption', *caption), **attributes)


def legend(names: Iterable[str]) -> Element:
  """A legend that gives each name the colour of its index."""
  return tag(
    'ul',
    *(
      tag('li', tag('span', class_=f'key {color(index)}'), name)
      for index, name in enumerate(names)
    ),
    class_='legend',
  )


def color(index: int) -> str:
  """The CSS classes of a colour; after eight colours they repeat, dashed.

  Example:
    >>> color(1), color(9)
    ('c1', 'c1 again')
  """
  return f'c{index % 8}' + ' again' * (index >= 8)


def page(
  title: str, sections: Iterable[Element], *, refresh: float | None = None
) -> str:
  """A complete page, which loads no other files.

  Args:
    refresh: seconds after which a browser loads the page again; None: never.
  """
  style = resources.files(__package__).joinpath('page.css').read_text()
  head = [
    tag('meta', charset='utf-8'),
    tag('meta', name='generator', content=GENERATOR),
    tag('meta', name='viewport', content='width=device-width'),
    tag('meta', name='color-scheme', content='light dark'),
    # Otherwise a browser would request an icon.
    tag('link', rel='icon', href='data:,'),
    tag('title', title),
    tag('style', style),
  ]
  if refresh:
    seconds = max(1, round(refresh))
    head.append(tag('meta', http_equiv='refresh', content=seconds))
  body = tag('main', tag('h1', 'Report'), *sections)
  html = tag('html', tag('head', *head), tag('body', body), lang='en')
  indent(html, space='')
  text = tostring(html, encoding='unicode', method='html')
  return f'<!doctype html>\n{text}\n'
