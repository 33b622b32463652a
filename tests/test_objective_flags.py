"""Each flag of pre-training reaches the objective that it is for."""

import dataclasses
import functools
import inspect
import re

import numpy as np
import pytest

from adaptssr_jax.data import Ragged, UserArrays
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.objectives.users import Encoding
from experiments.flags.objectives import TRAITS
from experiments.flags.pretraining import PretrainSettings, flags_of
from experiments.pretraining.context import Context
from experiments.pretraining.objectives import MAKERS
from tests.tiny_runs import pretrain_settings

ENCODER = UserEncoder(9, max_length=6, embed_dim=4, num_queries=3)
USERS = UserArrays(
  None, Ragged.from_rows([[1]]), similar_items=np.zeros((11, 2), np.int32)
)


def made(name, *, deterministic=False, **changes):
  settings = pretrain_settings('', '', objective=(name,), **changes)
  encoding = Encoding(ENCODER, deterministic=deterministic)
  return MAKERS[name](Context(settings, USERS, encoding, num_steps=9))


def described(value):
  """All that is bound to a function and to its parts, as text."""
  if isinstance(value, functools.partial):
    keywords = dict(value.keywords)
    if 'augmentations_at' in keywords:
      keywords['augmentations_at'] = keywords['augmentations_at'](1.0)
    return described([value.func, value.args, keywords])
  if isinstance(value, dict):
    return described([*value.items()])
  if isinstance(value, list | tuple) and not hasattr(value, '_fields'):
    return f'({", ".join(map(described, value))})'
  if inspect.isfunction(value):
    # In tests, a decorator checks the types of arguments.
    value = inspect.unwrap(value)
    cells = [cell.cell_contents for cell in value.__closure__ or ()]
    return f'{value.__qualname__}{described(cells)}'
  return re.sub(' at 0x[0-9a-f]+', '', repr(value))


@pytest.mark.parametrize(
  ('name', 'changes', 'keyword', 'value'),
  [
    ('adaptssr', {'fusion': '0.25'}, 'fusion', 0.25),
    ('adaptssr', {'fusion': 'batch_mean'}, 'fusion', 'batch_mean'),
    ('adaptssr', {'loss_form': 'list'}, 'form', 'list'),
    ('adaptssr', {'hard_negatives': False}, 'hard_negatives', False),
    ('adaptssr', {'smooth': 0.35}, 'smooth', 0.35),
    *(
      (name, {'temperature': 0.35}, 'temperature', 0.35)
      for name in ('adaptssr', 'clue', 'cl4srec', 'ccl', 'coserec', 'duorec')
    ),
    ('ecl', {'temperature': 0.35}, 'temperature', 0.35),
    # The cosine is divided by the number of interests too.
    ('idicl', {'temperature': 0.35}, 'temperature', 3 * 0.35),
    ('adaptssr', {'crop_ratio': 0.35}, 'ratio', 0.35),
    ('cl4srec', {'reorder_ratio': 0.35}, 'ratio', 0.35),
    *(
      (name, {'mask_ratio': 0.35}, 'ratio', 0.35)
      for name in ('masked_items', 'msdp', 'ecl', 'ccl_filled')
    ),
    ('coserec', {'substitute_ratio': 0.35}, 'ratio', 0.35),
    ('coserec', {'insert_ratio': 0.35}, 'ratio', 0.35),
    ('coserec', {'crop_ratio': 0.35}, 'ratio', 0.35),
    ('next_items', {'num_next': 7}, 'num_next', 7),
    ('msdp', {'max_window': 7}, 'max_window', 7),
    ('msdp', {'msdp_regularizer': 0.35}, 'regularizer', 0.35),
    ('ecl', {'ecl_contrast': 0.35}, 'contrast', 0.35),
    ('ecl', {'ecl_discriminator': 0.35}, 'discriminator', 0.35),
    ('ccl', {'curriculum_steps': 7}, 'num_steps', 7),
    ('ccl_filled', {'curriculum_steps': 7}, 'num_steps', 7),
    ('pooled_items', {'slice_lengths': ('2', '5')}, 'lengths', (2, 5)),
    ('coles', {'slice_lengths': ('2', '5')}, 'lengths', (2, 5)),
  ],
)
def test_a_flag_reaches_its_objective(name, changes, keyword, value):
  words = described((keyword, value))
  assert words in described(made(name, **changes))
  assert words not in described(made(name))


# A value for each flag that is for some objectives only.
CHANGES = {
  'fusion': '0.25',
  'loss_form': 'list',
  'smooth': 0.35,
  'hard_negatives': False,
  'temperature': 0.35,
  'augmentations': ('crop', 'mask'),
  'second_augmentations': ('reorder',),
  'num_slices': 4,
  'slice_lengths': ('2', '5'),
  'crop_ratio': 0.35,
  'mask_ratio': 0.35,
  'reorder_ratio': 0.35,
  'substitute_ratio': 0.35,
  'insert_ratio': 0.35,
  'num_next': 7,
  'max_window': 7,
  'msdp_regularizer': 0.35,
  'ecl_contrast': 0.35,
  'ecl_discriminator': 0.35,
  'curriculum_steps': 7,
}
# These do not change the function of the objective, but the batch or the head.
ELSEWHERE = {'num_similar', 'sampled_items', 'output_bias', 'window'}


@pytest.mark.parametrize('name', MAKERS)
def test_the_flags_without_effect_change_no_objective(name):
  before = described(made(name))
  changing = {
    flag
    for flag, value in CHANGES.items()
    if described(made(name, **{flag: value})) != before
  }
  settings = pretrain_settings('', '', objective=(name,))
  assert changing == flags_of(settings, name) - ELSEWHERE


def test_the_help_of_a_flag_names_the_objectives_that_have_it():
  settings, named = pretrain_settings('', ''), {}
  for field in dataclasses.fields(PretrainSettings):
    names = {*field.metadata['help'].partition(': ')[0].split(', ')}
    if names <= TRAITS.keys():
      named[field.name] = names
  assert named == {
    flag: {name for name in TRAITS if flag in flags_of(settings, name)}
    for flag in named
  }
  assert named.keys() >= {'augmentations', 'num_next', 'curriculum_steps'}


@pytest.mark.parametrize(
  ('changes', 'flag', 'words'),
  [
    ({'objective': ('masked_items',)}, 'fusion', 'it is for adaptssr'),
    ({'augmentations': ('mask',)}, 'crop_ratio', '--augmentations=mask'),
    ({}, 'objective_weights', 'several objectives'),
    ({}, 'probe_task', '--select_by=probe'),
    ({'num_steps': 3}, 'num_epochs', '--num_steps=3'),
    ({'objective': ('coles',)}, 'window', 'has no effect'),
  ],
)
def test_why_a_flag_has_no_effect_is_told(changes, flag, words):
  unused = pretrain_settings('', '', **changes).without_effect()
  assert words in unused[flag]


@pytest.mark.parametrize(
  ('changes', 'masks'),
  [
    ({'num_slices': 3}, [False] * 3),
    ({'second_augmentations': ('mask',)}, [False, True]),
  ],
)
def test_views_have_the_edits_of_the_flags(changes, masks):
  adaptssr = made('adaptssr', augmentations=('crop',), **changes)
  views = adaptssr.keywords['encode'].keywords['augmentations']
  assert ['mask_id' in described(view) for view in views] == masks


def test_views_of_dropout_have_it_in_validation_too():
  # Dropout makes the implicit views of AdaptSSR, and all those of CLUE.
  for name in ('adaptssr', 'clue', 'idicl'):
    encode = made(name, deterministic=True).keywords['encode'].keywords
    assert encode['passes'] == 2
    assert not encode['encoding'].deterministic


def test_interests_are_kept_apart():
  assert set(made('idicl').keywords['losses']) == {'idicl', 'query_overlap'}


@pytest.mark.parametrize('split', ['last_ten', 'leave_one_out'])
def test_only_the_new_item_is_validated_with_leave_one_out(split):
  changes = {'split': split, 'dataset': 'movielens_users/100k'}
  for deterministic in (False, True):
    objective = made('causal_items', deterministic=deterministic, **changes)
    expected = deterministic and split == 'leave_one_out'
    assert objective.keywords['last_only'] == expected
