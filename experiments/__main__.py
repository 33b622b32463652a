"""Lists the commands.

python -m experiments
"""

import ast
import pathlib
import runpy
import sys

_FOLDER = pathlib.Path(__file__).parent
_SCRIPT = 'adaptssr-'


def commands() -> dict[str, str]:
  """The first line of each command's docstring, read without an import."""
  return {
    path.stem: ast.get_docstring(
      ast.parse(path.read_text(encoding='utf-8'))
    ).split('\n')[0]
    for path in sorted(_FOLDER.glob('[!_]*.py'))
  }


def main() -> None:
  """Prints a line for each command."""
  if sys.argv[1:] and sys.argv[1] not in ('--help', '-help', '-h'):
    sys.exit(
      f'error: unexpected argument {sys.argv[1]!r}: run a command by '
      'python -m experiments.NAME; python -m experiments lists them'
    )
  found = commands()
  width = max(map(len, found))
  for name, line in found.items():
    print(f'{name:{width}}  {line}')
  print(
    f'\nRun python -m experiments.NAME, or {_SCRIPT}NAME if the package is '
    'installed. --help lists the flags.'
  )


def script() -> None:
  """Runs the command that the name of the script contains."""
  name = pathlib.Path(sys.argv[0]).stem.removeprefix(_SCRIPT)
  runpy.run_module(f'{__package__}.{name}', run_name='__main__', alter_sys=True)


if __name__ == '__main__':
  main()
