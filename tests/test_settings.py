"""Settings are read from flags and written as flags."""

import dataclasses

import pytest
from absl import flags

from experiments.baselines import BaselineSettings
from experiments.compare import CompareSettings
from experiments.flags.binder import (
  Settings,
  SettingsError,
  define_flags,
  flag,
  from_flagfile,
  from_flags,
  mutable_flag,
)
from experiments.flags.finetuning import FinetuneSettings
from experiments.flags.pretraining import PretrainSettings, parse_fusion
from experiments.quickstart import QuickstartSettings
from experiments.run.command import help_of
from experiments.similarity import SimilaritySettings

COMMANDS = [
  PretrainSettings,
  FinetuneSettings,
  QuickstartSettings,
  CompareSettings,
  BaselineSettings,
  SimilaritySettings,
]


def parse(settings_type, *words):
  values = flags.FlagValues()
  define_flags(settings_type, values)
  values(['command', *words])
  return from_flags(settings_type, values)


# Values that are right together only, or of which not every word is.
TOGETHER = {
  'distributed': 'on',
  'coordinator': 'a.host:1234',
  'num_processes': 3,
  'process_id': 2,
  'objective': ('masked_items', 'a.module:function'),
}


def changed(field):
  """Another value than the default that the field may have."""
  choices = field.metadata['choices']
  if field.name in TOGETHER:
    return TOGETHER[field.name]
  if isinstance(field.default, tuple) or 'tuple' in str(field.type):
    return choices[1:] if choices else ('a.csv', 'b c.csv')
  if choices:
    return choices[-1]
  if isinstance(field.default, bool) or 'bool' in str(field.type):
    return not field.default
  if isinstance(field.default, float) or 'float' in str(field.type):
    return 0.123456789
  if isinstance(field.default, int) or 'int' in str(field.type):
    return (field.default or 0) + 3
  return 'a word, and=more'


@pytest.mark.parametrize('settings_type', COMMANDS)
def test_settings_come_back_from_their_flag_file(tmp_path, settings_type):
  fields = dataclasses.fields(settings_type)
  for settings in (
    settings_type(),
    settings_type(**{field.name: changed(field) for field in fields}),
  ):
    path = tmp_path / 'flags.txt'
    path.write_text(settings.to_flagfile())
    assert parse(settings_type, f'--flagfile={path}') == settings
    assert from_flagfile(settings_type, path) == settings


@pytest.mark.parametrize('settings_type', COMMANDS)
def test_no_flags_are_the_defaults(settings_type):
  assert parse(settings_type) == settings_type()


def test_what_is_not_given_is_none_and_not_in_the_file():
  settings = parse(PretrainSettings)
  assert settings.embed_dim is None
  assert settings.cosine_pooling is None
  assert '--embed_dim' not in settings.to_flagfile()
  assert settings.encoder_fields() == {}
  given = parse(PretrainSettings, '--embed_dim=8', '--nocosine_pooling')
  assert given.encoder_fields() == {'embed_dim': 8, 'cosine_pooling': False}


def test_tuples_are_words_between_commas():
  settings = parse(PretrainSettings, '--augmentations=mask,crop')
  assert settings.augmentations == ('mask', 'crop')
  assert parse(PretrainSettings, '--events=').events == ()


def test_a_tilde_is_the_home_of_the_user(monkeypatch):
  monkeypatch.setenv('HOME', '/home/anna')
  words = ('--workdir=~/run', '--events=~/a.csv,b~.csv', '--where=~x')
  settings = parse(PretrainSettings, *words)
  assert settings.workdir == '/home/anna/run'
  assert settings.events == ('/home/anna/a.csv', 'b~.csv')
  assert settings.where == '~x'


def test_a_tuple_of_numbers_is_refused():
  words = r"--slice_lengths takes strings: \('5', '20'\), not \(5, 20\)"
  with pytest.raises(SettingsError, match=words):
    PretrainSettings(slice_lengths=(5, 20))


def test_flag_files_nest_and_the_last_word_wins(tmp_path):
  (tmp_path / 'base.flags').write_text('# Shared.\n--seed=1\n--embed_dim=8\n')
  (tmp_path / 'run.flags').write_text(
    f'--flagfile={tmp_path}/base.flags\n\n--seed=2\n'
  )
  nested = f'--flagfile={tmp_path}/run.flags'
  assert parse(PretrainSettings, nested).seed == 2
  assert parse(PretrainSettings, nested).embed_dim == 8
  assert parse(PretrainSettings, nested, '--seed=3').seed == 3
  assert parse(PretrainSettings, '--seed=3', nested).seed == 2
  assert from_flagfile(PretrainSettings, tmp_path / 'run.flags', seed=4) == (
    parse(PretrainSettings, nested, '--seed=4')
  )


@pytest.mark.parametrize(
  ('word', 'message'),
  [
    ('--learning_rat=1', 'mean: learning_rate'),
    ('--embed_dims=8', 'mean: embed_dim'),
    ('--seed=x', '--seed'),
    ('--learning_rate=fast', '--learning_rate'),
    ('--hard_negatives=maybe', '--hard_negatives'),
  ],
)
def test_a_typo_is_answered_with_the_nearest_flag_or_with_its_own(
  word, message
):
  with pytest.raises(flags.Error, match=message):
    parse(PretrainSettings, word)


def wrong_values():
  """For every bound of every command, the nearest value beyond it."""
  # Commands share most of their fields, each of which is one object.
  fields = {
    id(field): (settings_type, field)
    for settings_type in COMMANDS
    for field in dataclasses.fields(settings_type)
  }
  for settings_type, field in fields.values():
    rule = field.metadata
    step = 1 if isinstance(rule['high'], int) else 0.001
    if rule['low'] is not None:
      yield settings_type, field.name, rule['low'] - 1, 'at least'
    if rule['above'] is not None:
      yield settings_type, field.name, rule['above'], 'above'
    if rule['high'] is not None:
      yield settings_type, field.name, rule['high'] + step, 'at most'
    if rule['choices']:
      word = ('x',) if 'tuple' in str(field.type) else 'x'
      yield settings_type, field.name, word, 'must be'


@pytest.mark.parametrize(
  ('settings_type', 'name', 'value', 'words'), list(wrong_values())
)
def test_a_value_out_of_bounds_names_the_flag(
  settings_type, name, value, words
):
  with pytest.raises(SettingsError, match=f'^--{name} .*{words}'):
    settings_type(**{name: value})
  text = ','.join(value) if isinstance(value, tuple) else value
  with pytest.raises(SettingsError, match=f'^--{name} .*{words}'):
    parse(settings_type, f'--{name}={text}')


@pytest.mark.parametrize(
  ('word', 'message'),
  [
    ('--crop_ratio=nan', 'must be above 0.0, not nan'),
    ('--learning_rate=inf', 'must be finite, not inf'),
    ('--smooth=inf', 'must be finite, not inf'),
    ('--weight_decay=Infinity', 'must be finite, not inf'),
    ('--augmentations=', 'needs at least one of crop'),
    ('--events=a.csv,b.csv,a.csv', r"has 'a\.csv' twice: give it once"),
  ],
)
def test_a_value_that_no_flag_may_have_names_the_flag(word, message):
  name = word.partition('=')[0]
  with pytest.raises(SettingsError, match=f'^{name} {message}'):
    parse(PretrainSettings, word)


def test_some_words_may_repeat():
  weights = parse(PretrainSettings, '--objective_weights=1,1')
  assert weights.objective_weights == ('1', '1')


def test_the_bounds_themselves_are_within():
  settings = PretrainSettings(crop_ratio=1.0, batch_size=1, dropout_rate=0.0)
  assert settings.crop_ratio == 1


@pytest.mark.parametrize(
  ('text', 'value'),
  [('adaptive', 'adaptive'), ('batch_mean', 'batch_mean'), ('0.25', 0.25)],
)
def test_fusion_is_a_word_or_a_number(text, value):
  assert parse_fusion(text) == value


@pytest.mark.parametrize('text', ['adaptiv', '', '1.5', '-0.1', 'nan'])
def test_another_fusion_is_refused(text):
  with pytest.raises(SettingsError, match=r'^--fusion must be adaptive'):
    parse_fusion(text)


def test_a_class_of_settings_needs_no_more_than_its_fields():
  @dataclasses.dataclass(frozen=True, kw_only=True)
  class Some(Settings):
    size: int = flag(2, 'A size.', low=1)
    names: tuple[str, ...] = mutable_flag(('a',), 'Names.')

  assert parse(Some, '--size=3').flag_values() == {'size': '3', 'names': 'a'}
  assert Some().mutable_names() == {'names'}
  assert Some(size=4, names=('b', 'c')).to_flagfile() == (
    '--size=4\n--names=b,c\n'
  )


def test_text_comes_back_from_a_file_as_it_was(tmp_path):
  settings = PretrainSettings(
    events=('a,b.csv', 'say "c".csv'), where="name = ', '"
  )
  path = tmp_path / 'flags.txt'
  path.write_text(settings.to_flagfile())
  assert from_flagfile(PretrainSettings, path) == settings
  for changes in ({'where': 'a = 1 and\nb = 2'}, {'events': ('a\n.csv',)}):
    with pytest.raises(SettingsError, match='must be one line, not '):
      PretrainSettings(**changes)


def test_help_lists_every_flag_and_what_it_does():
  text = ' '.join(help_of(PretrainSettings, 'About it.').split())
  for field in dataclasses.fields(PretrainSettings):
    assert f'--{field.name}:' in text or f'--[no]{field.name}:' in text
    assert field.metadata['help'][:30] in text
    assert field.metadata['help'][-1] in '.]', field.name
