"""The layout of the code: import order, and packages never imported."""

import ast
import builtins
import dis
import importlib
import inspect
import pkgutil
import shutil

import pytest

import adaptssr_jax
import adaptssr_jax.data
import experiments
from tests.tiny_runs import (
  ROOT,
  finetune_settings,
  last_line_of,
  pretrain_settings,
  saved_steps,
)

LIBRARY = sorted((ROOT / 'adaptssr_jax').rglob('*.py'))
# What another Python runs, which has PyTorch.
PYTORCH = sorted((ROOT / 'experiments/benchmarking/pytorch').rglob('*.py'))
COMMANDS = sorted({*(ROOT / 'experiments').rglob('*.py')} - {*PYTORCH})
# A folder or a file of a package may import those before it, and its own.
LIBRARY_ORDER = [
  {'errors', 'files'},
  {'ops'},
  {'augment', 'losses', 'metrics', 'diagnostics'},
  {'encoder'},
  {'table'},
  {'objectives'},
  {'training'},
  {'checkpoint'},
]
COMMANDS_ORDER = [
  {'flags'},
  {'run'},
  {'planning', 'finetuning', 'embedding'},
  {'probing'},
  {'pretraining'},
]
# What is below the top of `data` alone may be imported by its readers.
DATA_ORDER = [
  {'ragged'},
  {'rows'},
  {'beam', 'histories'},
  {'readers'},
  {'builder'},
  {'prepare'},
  {'prepared'},
]
# Folders that one command has for itself, above all that commands share.
COMMANDS_OWN = {
  'benchmarking': 'benchmark',
  'comparison': 'compare',
  'reporting': 'report',
}
# What runs other commands.
CALLERS = {'experiments.quickstart', 'experiments.comparison.commands'}


def name_of(path):
  """adaptssr_jax/data/ragged.py -> adaptssr_jax.data.ragged"""
  parts = path.relative_to(ROOT).with_suffix('').parts
  return '.'.join(part for part in parts if part != '__init__')


def imports(path):
  """Full names of what a file imports, wherever it stands in the file."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: imports are absolute'
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def parts_of(path, package):
  """The modules or packages right below a package that a file imports."""
  for name in imports(path):
    root, *below = name.split('.')
    if root == package and below:
      yield below[0]


def place_of(part, order):
  """The number of the layer that a folder or a file is of."""
  found = [at for at, names in enumerate(order) if part in names]
  assert found, f'{part}: which layer is it of?'
  return found[0]


@pytest.mark.parametrize('path', LIBRARY, ids=name_of)
def test_imports_of_the_library_go_one_way(path):
  _, *below = name_of(path).split('.')
  if not below or below[0] == 'data':
    return
  at = place_of(below[0], LIBRARY_ORDER)
  for part in parts_of(path, 'adaptssr_jax'):
    found = place_of(part, LIBRARY_ORDER)
    assert found < at or part == below[0], part
  if below == ['training', 'step']:
    # It takes a loss function: whose, it does not know.
    ours = {name for name in imports(path) if name.startswith('adaptssr_jax')}
    assert {name.rpartition('.')[0] for name in ours} == {
      'adaptssr_jax.table.shards',
      'adaptssr_jax.training.devices',
    }


@pytest.mark.parametrize('path', LIBRARY, ids=name_of)
def test_the_library_does_not_know_the_commands(path):
  assert not list(parts_of(path, 'experiments'))


def test_data_stands_alone():
  for path in LIBRARY:
    parts = set(parts_of(path, 'adaptssr_jax'))
    if 'data' in name_of(path).split('.'):
      assert parts <= {'data', 'errors', 'files'}, path
      assert not any(name.split('.')[0] == 'jax' for name in imports(path))
    else:
      assert 'data' not in parts, path


def test_pytorch_needs_no_jax():
  ours = {'adaptssr_jax', 'jax', 'flax', 'optax'}
  folder = ROOT / 'experiments/benchmarking'
  for path in [*PYTORCH, folder / 'reference.py', folder / 'timing.py']:
    assert not ours & {name.split('.')[0] for name in imports(path)}, path


@pytest.mark.parametrize('folder', ['readers', 'prepared'])
def test_imports_of_the_data_code_go_one_way(folder):
  at = place_of(folder, DATA_ORDER)
  for path in (ROOT / 'adaptssr_jax/data' / folder).glob('*.py'):
    for name in imports(path):
      parts = name.split('.')
      if parts[:2] == ['adaptssr_jax', 'data']:
        assert place_of(parts[2], DATA_ORDER) <= at, (path, name)


def test_what_commands_share_imports_one_way():
  for path in COMMANDS:
    _, *below = name_of(path).split('.')
    if not below or below[0] not in set().union(*COMMANDS_ORDER):
      continue
    at = place_of(below[0], COMMANDS_ORDER)
    for part in set(parts_of(path, 'experiments')) - {below[0]}:
      assert place_of(part, COMMANDS_ORDER) < at, (path, part)


def test_commands_do_not_import_each_other():
  shared = set().union(*COMMANDS_ORDER)
  for path in COMMANDS:
    name = name_of(path)
    _, *below = name.split('.')
    parts = set(parts_of(path, 'experiments')) - shared
    own = {part for part in parts if COMMANDS_OWN.get(part) in below}
    if below and below[0] in COMMANDS_OWN:
      own = {below[0]}
    if name in CALLERS:
      # Or there would be nothing to make an exception for.
      assert parts - own, name
    else:
      assert parts <= own, (name, parts - own)


def using(text):
  return [
    name_of(path) for path in LIBRARY + COMMANDS if text in path.read_text()
  ]


def calls(name):
  """The functions that use a dotted name, by module."""
  found = []
  for path in LIBRARY + COMMANDS:
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Attribute) and ast.unparse(node) == name:
        found.append(name_of(path))
      if isinstance(node, ast.ImportFrom):
        names = {f'{node.module}.{alias.name}' for alias in node.names}
        found += [name_of(path)] * (name in names)
  return found


def test_one_function_maps_devices():
  assert calls('jax.pmap') == ['adaptssr_jax.training.step']


def test_one_folder_calls_orbax():
  assert using('import orbax') == [
    'adaptssr_jax.checkpoint.checkpoints',
    'adaptssr_jax.checkpoint.encoders',
    'adaptssr_jax.checkpoint.items',
  ]
  assert using('from orbax') == []


@pytest.mark.parametrize('path', LIBRARY, ids=name_of)
def test_the_library_has_no_flags_environment_or_global_state(path):
  tree = ast.parse(path.read_text())
  for name in imports(path):
    root = name.split('.')[0]
    assert root not in {'absl', 'argparse', 'logging', 'subprocess'}
  for node in ast.walk(tree):
    assert not isinstance(node, ast.Global)
    if isinstance(node, ast.Attribute):
      used = ast.unparse(node)
      assert used not in {'os.environ', 'os.getenv', 'jax.config'}, path
  for node in tree.body:
    if isinstance(node, ast.If) and ast.unparse(node.test) == 'TYPE_CHECKING':
      continue
    # No work at import time: a module names things, and calls few.
    assert isinstance(
      node,
      ast.Import
      | ast.ImportFrom
      | ast.FunctionDef
      | ast.ClassDef
      | ast.Assign
      | ast.AnnAssign
      | ast.Expr,
    ), (path, node.lineno)
    if isinstance(node, ast.Expr):
      assert isinstance(node.value, ast.Constant), (path, node.lineno)


def globals_of(code):
  """The global names that a program reads, its functions included."""
  for instruction in dis.get_instructions(code):
    if instruction.opname == 'LOAD_GLOBAL':
      yield instruction.argval
  for constant in code.co_consts:
    if inspect.iscode(constant):
      yield from globals_of(constant)


@pytest.mark.parametrize('path', LIBRARY + COMMANDS, ids=name_of)
def test_every_name_is_defined(path):
  # The shapes of jaxtyping are strings, for which the linter cannot tell.
  module = importlib.import_module(name_of(path))
  read = set(globals_of(compile(path.read_text(), str(path), 'exec')))
  assert read <= vars(module).keys() | vars(builtins).keys()


def modules():
  for package in (adaptssr_jax, experiments):
    yield package.__name__
    for found in pkgutil.walk_packages(
      package.__path__, package.__name__ + '.'
    ):
      if not found.name.startswith('experiments.benchmarking.pytorch.'):
        yield found.name


def undocumented(module):
  """Public names of a module, and of its classes, without a docstring."""
  if not module.__doc__:
    yield module.__name__
  for name, value in vars(module).items():
    ours = getattr(value, '__module__', None) == module.__name__
    if name.startswith('_') or not ours:
      continue
    if (inspect.isclass(value) or inspect.isfunction(value)) and not (
      value.__doc__
    ):
      yield f'{module.__name__}.{name}'
    for part, method in vars(value).items() if inspect.isclass(value) else ():
      method = getattr(method, '__func__', getattr(method, 'fget', method))
      if (
        inspect.isfunction(method)
        and method.__module__ == module.__name__
        and not part.startswith('_')
        and not method.__doc__
      ):
        yield f'{module.__name__}.{name}.{part}'


@pytest.mark.parametrize('name', list(modules()))
def test_every_public_name_has_a_docstring(name):
  module = importlib.import_module(name)
  assert not list(undocumented(module))
  for public in getattr(module, '__all__', ()):
    assert getattr(module, public).__doc__, public


def test_public_names_are_listed_in_order():
  for package in (adaptssr_jax, adaptssr_jax.data):
    assert list(package.__all__) == sorted(package.__all__)
    assert len(set(package.__all__)) == len(package.__all__)


def test_files_stay_small():
  for path in LIBRARY + COMMANDS + PYTORCH:
    text = path.read_text()
    assert len(text.splitlines()) <= 300, path


HEAVY = ('tensorflow', 'apache_beam', 'torch', 'clu')


def imported_by(code):
  """The top-level modules that a fresh interpreter holds after some code."""
  code += (
    '\nimport sys\nprint(sorted({name.split(".")[0] for name in sys.modules}))'
  )
  return ast.literal_eval(last_line_of(code))


def test_losses_need_nothing_but_jax():
  found = set(
    imported_by("""
import adaptssr_jax
adaptssr_jax.adaptssr_loss, adaptssr_jax.crop
adaptssr_jax.metrics, adaptssr_jax.diagnostics
""")
  )
  assert {'adaptssr_jax', 'jax', 'jaxtyping', 'numpy'} <= found
  others = {'experiments', 'flax', 'optax', 'orbax', 'tensorflow_datasets'}
  assert not {*HEAVY, *others} & found


def test_operations_need_nothing_but_jax():
  for path in LIBRARY:
    if name_of(path).startswith('adaptssr_jax.ops'):
      roots = {name.split('.')[0] for name in imports(path)}
      assert not {'flax', 'optax', 'orbax'} & roots, path


def test_what_needs_more_is_imported_when_it_is_asked_for():
  names = {*adaptssr_jax.__all__, 'checkpoint', 'data', 'encoder', 'training'}
  assert names <= set(dir(adaptssr_jax))
  found = imported_by(f"""
import types
import adaptssr_jax
for name in {sorted(names)!r}:
  value = getattr(adaptssr_jax, name)
  assert isinstance(value, types.ModuleType) or callable(value), name
assert not hasattr(adaptssr_jax, 'no_such_name')
""")
  assert {'flax', 'optax', 'orbax', 'tensorflow_datasets'} <= set(found)
  assert not {*HEAVY, 'experiments'} & set(found)


def test_no_run_imports_tensorflow(pretrained, tmp_path, data_dir):
  # A run that is resumed for one more step finds its programs compiled.
  shutil.copytree(pretrained.workdir, tmp_path / 'p')
  longer = pretrain_settings(tmp_path / 'p', data_dir, num_steps=10)
  # Which imports more than it takes to train a head.
  tuned = finetune_settings(
    tmp_path / 'f', data_dir, pretrained=str(tmp_path / 'p'), mode='probe'
  )
  for name, settings in (('p', longer), ('f', tuned)):
    (tmp_path / f'{name}.flags').write_text(settings.to_flagfile())
  commands = [name for name in modules() if name.startswith('experiments.')]
  found = imported_by(f"""
import pathlib
import {', '.join(commands)}
import adaptssr_jax.data
from experiments import finetune, pretrain
from experiments.flags.binder import from_flagfile
folder = pathlib.Path({str(tmp_path)!r})
pretrain.main(from_flagfile(pretrain.PretrainSettings, folder / 'p.flags'))
finetune.main(from_flagfile(finetune.FinetuneSettings, folder / 'f.flags'))
""")
  assert {'experiments', 'tensorflow_datasets', 'orbax'} <= set(found)
  assert not set(HEAVY) & set(found)
  assert saved_steps(tmp_path / 'p')[-1] == 10
  assert (tmp_path / 'f' / 'result.json').exists()
