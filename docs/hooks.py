"""Hooks of MkDocs for the site, in addition to `mkdocs.yml`.

Files outside docs/ become pages of the site, and links to them lead to these
pages, so that a link works on a code host and in the site. Formulas in LaTeX
become MathML, which browsers draw without an external script.
"""

import functools
import json
import pathlib
import posixpath
import re

import griffe
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = pathlib.Path(__file__).parents[1]
OUTSIDE = ('*.md', 'examples/*.ipynb', 'examples/**/*.py')
_LINK = re.compile(r'(\]\(|(?:href|src|srcset)=")([^)"#:\s]+)')
_FORMULA = re.compile(r'^```math\n(.*?)\n```$', re.S | re.M)


def on_files(files: Files, config: MkDocsConfig) -> Files:
  """Adds the pages that are outside docs/."""
  for pattern in OUTSIDE:
    for path in sorted(ROOT.glob(pattern)):
      place = page_of(path.relative_to(ROOT).as_posix())
      files.append(File.generated(config, place, content=as_markdown(path)))
  return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
  """Turns links between files into links between pages, and draws formulas."""
  uri = page.file.src_uri
  source = f'docs/{uri}'
  if page.file.generated_by:
    source = re.sub(r'(\.py|\.ipynb)\.md$', r'\1', uri)
  markdown = _FORMULA.sub(_drawn, markdown)
  return _LINK.sub(functools.partial(_moved, source, uri), markdown)


def _drawn(formula: re.Match) -> str:
  return f'<div class="formula">{convert(formula[1], display="block")}</div>'


def _moved(source: str, uri: str, link: re.Match) -> str:
  """Replaces a link between files by one between pages; keeps other links."""
  path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[2]))
  if not (ROOT / path).is_file():
    return link[0]
  start = posixpath.dirname(uri) or '.'
  return link[1] + posixpath.relpath(page_of(path), start)


def page_of(path: str) -> str:
  """The page of a file of the repository; README.md is the start page.

  docs/speed.md -> speed.md, examples/plain_jax.py -> examples/plain_jax.py.md
  """
  if path.startswith('docs/'):
    return path.removeprefix('docs/')
  return path if path.endswith('.md') else f'{path}.md'


def as_markdown(path: pathlib.Path) -> str:
  """The text of a page: programs as a code block, notebooks cell by cell."""
  text = path.read_text()
  if path.suffix == '.md':
    return text
  if path.suffix == '.py':
    return f'# {path.name}\n\n```python\n{text}```\n'
  cells = (
    (cell['cell_type'], ''.join(cell['source']))
    for cell in json.loads(text)['cells']
  )
  return '\n\n'.join(
    f'```python\n{source}\n```' if kind == 'code' else source
    for kind, source in cells
  )


class Sections(griffe.Extension):
  """Maps our names for sections of docstrings to those of griffe."""

  def on_object(self, *, obj: griffe.Object, **_: object) -> None:
    """Shows examples as code, and the Args of a class as its attributes."""
    if obj.docstring:
      text = obj.docstring.value
      text = re.sub('^Example:$', 'Examples:', text, flags=re.M)
      if obj.is_class:
        text = re.sub('^Args:$', 'Attributes:', text, flags=re.M)
      obj.docstring.value = text
