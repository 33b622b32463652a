"""HTML and SVG as trees of elements, in which all text is escaped."""

import re
from collections.abc import Iterable, Sequence
from importlib import resources
from xml.etree.ElementTree import Element, indent, tostring

# By which the command knows its own pages.
GENERATOR = 'experiments.report'
# All but the characters of XML 1.0, section 2.2.
_FORBIDDEN = re.compile('[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]')


def allowed(text: str) -> str:
  """The text without characters that XML forbids, such as those of control."""
  return _FORBIDDEN.sub('', text)


def tag(name: str, /, *content: Element | str, **attributes: object) -> Element:
  """An element, its attributes with - for _; one at the end is left out.

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
  """A table with a caption, the first cell of a row being its header."""
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
  """What may be wider than the page, in a box that the keyboard can scroll."""
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
  """A picture with what is to be seen in it."""
  return tag('figure', picture, tag('figcaption', *caption), **attributes)


def legend(names: Iterable[str]) -> Element:
  """Which colour is whose, in the order of the colours."""
  return tag(
    'ul',
    *(
      tag('li', tag('span', class_=f'key {color(index)}'), name)
      for index, name in enumerate(names)
    ),
    class_='legend',
  )


def color(index: int) -> str:
  """The classes of a colour; after eight they begin anew, dashed.

  Example:
    >>> color(1), color(9)
    ('c1', 'c1 again')
  """
  return f'c{index % 8}' + ' again' * (index >= 8)


def page(
  title: str, sections: Iterable[Element], *, refresh: float | None = None
) -> str:
  """A whole page, which loads nothing, and itself anew after `refresh` s."""
  style = resources.files(__package__).joinpath('page.css').read_text()
  head = [
    tag('meta', charset='utf-8'),
    tag('meta', name='generator', content=GENERATOR),
    tag('meta', name='viewport', content='width=device-width'),
    tag('meta', name='color-scheme', content='light dark'),
    # Else a browser would ask for one.
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
