"""How the code is laid out: who imports whom, and what is never imported."""

import ast
import builtins
import dis
import importlib
import inspect
import pathlib
import pkgutil

import pytest

import adaptssr_jax
import adaptssr_jax.data
import experiments
from tests.tiny_runs import (
  ROOT,
  finetune_settings,
  last_line_of,
  pretrain_settings,
)

LIBRARY = sorted((ROOT / 'adaptssr_jax').rglob('*.py'))
COMMANDS = sorted((ROOT / 'experiments').rglob('*.py'))
# A module may import modules of lower layers, or of its own.
LAYERS = [
  {
    'augment',
    'losses',
    'metrics',
    'diagnostics',
    'fusion',
    'ranking_losses',
    'reductions',
    'similarity',
    'negatives',
    'microbatches',
    'dropout',
    'transfer',
    'compact',
    'checkpoint_files',
    'devices',
    'item_softmax',
    'layers',
  },
  {
    'blocks',
    'models',
    'buckets',
    'optimizers',
    'table_shards',
    'shard_softmax',
    'set_softmax',
    'padded_softmax',
    'tied_targets',
  },
  {'objectives', 'convert', 'description'},
  {'checkpoint_items'},
  {'train'},
  {'row_training'},
  {'checkpoint'},
]
# What the commands of each layer may import of the commands.
COMMAND_LAYERS = [
  {
    'compilation',
    'prefetch',
    'similarity_views',
    'interruption',
    'planning',
    'features',
  },
  {'settings', 'classifiers'},
  {'objective_settings', 'reading'},
  {'speed', 'process', 'scikit_learn'},
  {'distributed'},
  {'shared_settings'},
  {
    'workdir',
    'datasets',
    'encoders',
    'pictures',
    'vector_files',
    'causal_items',
  },
  {
    'finetune_settings',
    'logs',
    'similarity_picture',
    'collapse',
    'encoded_views',
    'objectives',
  },
  {'skipped', 'target_heads'},
  {'loop'},
  {'tasks', 'plan'},
  {'labelled_rows'},
  {'probe', 'probe_epochs', 'tuning'},
]


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


def layer_of(part, layers):
  found = [at for at, names in enumerate(layers) if part in names]
  assert found, f'{part}: which layer is it of?'
  return found[0]


@pytest.mark.parametrize('path', LIBRARY, ids=name_of)
def test_imports_of_the_library_go_one_way(path):
  _, *below = name_of(path).split('.')
  if not below or below[0] == 'data':
    return
  at = layer_of(below[0], LAYERS)
  for part in parts_of(path, 'adaptssr_jax'):
    assert layer_of(part, LAYERS) <= at, part
  if below == ['train']:
    # It takes a loss function: whose, it does not know.
    assert set(parts_of(path, 'adaptssr_jax')) == {'devices'}


@pytest.mark.parametrize('path', LIBRARY, ids=name_of)
def test_the_library_does_not_know_the_commands(path):
  assert not list(parts_of(path, 'experiments'))


def test_data_stands_alone():
  for path in LIBRARY:
    parts = set(parts_of(path, 'adaptssr_jax'))
    if path.parent.name == 'data':
      assert parts <= {'data'}, path
      assert not any(name.split('.')[0] == 'jax' for name in imports(path))
    else:
      assert 'data' not in parts, path


def test_commands_import_what_they_share_and_not_each_other():
  shared = set().union(*COMMAND_LAYERS)
  for path in COMMANDS:
    parts = set(parts_of(path, 'experiments'))
    if path.parent.name == 'experiments' and path.stem in shared:
      at = layer_of(path.stem, COMMAND_LAYERS)
      assert all(layer_of(part, COMMAND_LAYERS) < at for part in parts), path


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
  assert calls('jax.pmap') == ['adaptssr_jax.train']


def test_two_files_call_orbax():
  assert using('import orbax') == [
    'adaptssr_jax.checkpoint',
    'adaptssr_jax.checkpoint_items',
  ]
  assert using('from orbax') == []


@pytest.mark.parametrize('path', LIBRARY, ids=name_of)
def test_the_library_has_no_flags_environment_or_global_state(path):
  tree = ast.parse(path.read_text())
  for name in imports(path):
    assert name.split('.')[0] not in {'absl', 'argparse', 'logging'}
  for node in ast.walk(tree):
    assert not isinstance(node, ast.Global)
    if isinstance(node, ast.Attribute):
      used = ast.unparse(node)
      assert used not in {'os.environ', 'os.getenv', 'jax.config'}, path
  for node in tree.body:
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
  for path in LIBRARY + COMMANDS:
    text = path.read_text()
    assert len(text.splitlines()) < 350, path


HEAVY = ('tensorflow', 'apache_beam', 'torch', 'clu')


def imported_by(code):
  """The top-level modules that a fresh interpreter holds after some code."""
  code += (
    '\nimport sys\nprint(sorted({name.split(".")[0] for name in sys.modules}))'
  )
  return ast.literal_eval(last_line_of(code))


def test_the_library_alone_imports_no_data_code_and_no_flags():
  found = imported_by('import adaptssr_jax')
  assert {'jax', 'flax'} <= set(found)
  assert not {*HEAVY, 'tensorflow_datasets', 'experiments'} & set(found)


def test_no_run_imports_tensorflow(tmp_path, data_dir):
  pretrained = pretrain_settings(tmp_path / 'p', data_dir, num_steps=2)
  tuned = finetune_settings(
    tmp_path / 'f', data_dir, pretrained=str(tmp_path / 'p'), num_epochs=1
  )
  for name, settings in (('p', pretrained), ('f', tuned)):
    (tmp_path / f'{name}.flags').write_text(settings.to_flagfile())
  commands = [name for name in modules() if name.startswith('experiments.')]
  found = imported_by(f"""
import pathlib
import {', '.join(commands)}
import adaptssr_jax.data
from experiments import finetune, pretrain
from experiments.settings import from_flagfile
folder = pathlib.Path({str(tmp_path)!r})
pretrain.main(from_flagfile(pretrain.PretrainSettings, folder / 'p.flags'))
finetune.main(from_flagfile(finetune.FinetuneSettings, folder / 'f.flags'))
""")
  assert {'experiments', 'tensorflow_datasets', 'orbax'} <= set(found)
  assert not set(HEAVY) & set(found)
  assert pathlib.Path(tmp_path / 'f' / 'result.json').exists()
