"""The TTL archive: its numbers, its splits, and errors of a line."""

import collections
import random

import numpy as np
import pytest
import tensorflow_datasets as tfds

from adaptssr_jax import data
from adaptssr_jax.data import ttl
from adaptssr_jax.data.readers import lines as text_lines
from adaptssr_jax.data.readers import ttl_lines
from adaptssr_jax.data.readers.lines import Span
from tests.labelled_rows import lists, rows_of

PRETRAIN = 'original_desen_pretrain.csv'
AGE = 'original_desen_age.csv'
CLICK = 'original_desen_finetune_click_nouserID.csv'
LIKE = 'original_desen_finetune_like_nouserID.csv'
# The sequences are distinct; 900 appears first, so it is item 1.
LINES = [f'{900 - line},{line + 1},7' for line in range(20)]


def write(folder, **files):
  names = {'pretrain': PRETRAIN, 'age': AGE, 'click': CLICK, 'like': LIKE}
  folder.mkdir(exist_ok=True)
  for name, lines in files.items():
    (folder / names[name]).write_bytes('\n'.join(lines).encode() + b'\n')
  return folder


def load(folder, config, **options):
  builder = tfds.builder(f'ttl/{config}', data_dir=folder.parent / 'prepared')
  return data.load(builder, manual_dir=str(folder), **options)


def first_numbers(values):
  numbers = {}
  for value in values:
    numbers.setdefault(value, len(numbers))
  return numbers


def shuffled(examples, seed):
  """Shuffles in place, with the code of the reference implementation."""
  random.seed(seed)
  random.shuffle(examples)
  return examples


def test_pretrain_is_the_shuffle_of_the_reference_cut_at_nine_tenths(tmp_path):
  users = load(write(tmp_path / 'manual', pretrain=LINES), 'pretrain')

  raw = [[int(item) for item in line.split(',')] for line in LINES]
  number = first_numbers(item for row in raw for item in row)
  order = shuffled([str(line) for line in range(20)], 2309)
  expected = [[number[i] + 1 for i in raw[int(line)]] for line in order]
  assert lists(users.splits['train'].items) == expected[:18]
  assert lists(users.splits['validation'].items) == expected[18:]
  assert list(users.vocabulary.items) == [str(item) for item in number]
  every = np.arange(18)
  assert users.splits['train'].user_ids(every) == [
    str(int(line) + 1) for line in order[:18]
  ]


@pytest.mark.parametrize('num_rows', [1, 4, 5, 13, 999])
@pytest.mark.parametrize('seed', [2309, 1730, 1354])
def test_split_cuts_where_the_reference_does(num_rows, seed):
  parts = ttl.reference_split(num_rows, ttl._TASK_ENDS, seed)
  order = shuffled(list(range(num_rows)), seed)
  first, second = int(num_rows * 0.6), int(num_rows * 0.8)
  assert parts['train'].tolist() == order[:first]
  assert parts['validation'].tolist() == order[first:second]
  assert parts['test'].tolist() == order[second:]


def test_labels_are_numbered_as_they_appear_and_users_by_their_line(tmp_path):
  labels = [5, 3, 5, 9, 3, 0, 0, 5, 3, 9]
  # The reference identifies a user by the last line with the same behaviours.
  pretrain = [*LINES, LINES[4]]
  age = [f'{LINES[row]},,{label}' for row, label in enumerate(labels)]
  folder = write(tmp_path / 'manual', pretrain=pretrain, age=age)
  users = load(folder, 'age')

  assert list(users.vocabulary.labels) == ['5', '3', '9', '0']
  number = first_numbers(labels)
  line = [1, 2, 3, 4, 21, 6, 7, 8, 9, 10]
  order = shuffled(list(range(10)), 1730)
  found = [
    (user, label)
    for split in ('train', 'validation', 'test')
    for user, label in zip(
      users.splits[split].user_ids(np.arange(len(users.splits[split].label))),
      users.splits[split].label.tolist(),
      strict=True,
    )
  ]
  assert found == [(str(line[row]), number[labels[row]]) for row in order]
  assert len(users.splits['train'].label) == 6


def test_ranking_has_a_row_for_each_target_with_the_others_beside(tmp_path):
  targets = [[70, 80], [80], [90, 70, 60], [60, 80], [70]]
  click = [
    f'{LINES[row]},,{",".join(map(str, line))}'
    for row, line in enumerate(targets)
  ]
  folder = write(tmp_path / 'manual', pretrain=LINES, click=click)
  users = load(folder, 'click')

  number = first_numbers(target for line in targets for target in line)
  pairs = [
    (str(row + 1), number[own], {number[t] for t in line if t != own})
    for row, line in enumerate(targets)
    for own in line
  ]
  pairs = shuffled(pairs, 1354)
  found = {
    split: [(user, *row) for user, _, *row in rows_of(of_split)]
    for split, of_split in users.splits.items()
  }
  assert found['train'] == pairs[:5]
  assert found['validation'] == pairs[5:7]
  assert found['test'] == pairs[7:]
  assert list(users.vocabulary.labels) == ['70', '80', '90', '60']


def test_a_target_given_twice_is_the_positive_of_two_rows(tmp_path):
  like = [f'{line},,5,5,6' for line in LINES]
  folder = write(tmp_path / 'manual', pretrain=LINES, like=like)
  splits = load(folder, 'thumb_up').splits
  assert splits['train'].num_rows == 36
  found = collections.Counter(
    (user, positive)
    for split in splits.values()
    for user, _, positive, _ in rows_of(split)
  )
  assert found == {
    (str(line + 1), target): 2 - target
    for line in range(20)
    for target in (0, 1)
  }


def test_zeros_are_padding_in_either_file(tmp_path):
  padded = [f'0,{line},0,0' for line in LINES]
  age = [f'{line},0,,{row % 2}' for row, line in enumerate(LINES)]
  folder = write(tmp_path / 'manual', pretrain=padded, age=age)
  users = load(folder, 'age')
  assert '0' not in users.vocabulary.items
  assert list(users.vocabulary.labels) == ['0', '1']
  assert all(len(row) == 3 for row in lists(users.splits['train'].items))


def test_windows_line_ends_and_spaces_change_nothing(tmp_path):
  plain = load(write(tmp_path / 'plain', pretrain=LINES), 'pretrain')
  folder = tmp_path / 'elsewhere' / 'manual'
  folder.mkdir(parents=True)
  text = '\r\n'.join(line.replace(',', ', ') for line in LINES)
  (folder / PRETRAIN).write_bytes(text.encode())
  other = load(folder, 'pretrain')
  assert lists(plain.splits['train'].items) == lists(
    other.splits['train'].items
  )
  assert plain.vocabulary == other.vocabulary


@pytest.mark.parametrize('kind', ['pretrain', 'classification', 'ranking'])
def test_lines_are_the_same_in_blocks_of_any_size(tmp_path, monkeypatch, kind):
  rng = np.random.default_rng(0)
  most = {'pretrain': 0, 'classification': 1, 'ranking': 4}[kind]
  texts, expected = [], []
  for _ in range(300):
    items = rng.integers(0, 10 ** rng.integers(1, 18), rng.integers(1, 9))
    items *= rng.random() < 0.9
    tail = rng.integers(0, 50, rng.integers(1, most + 1) if most else 0)
    text = ','.join(map(str, items))
    texts.append(text + (f',,{",".join(map(str, tail))}' if most else ''))
    expected.append((items[items > 0].tolist(), tail.tolist()))
  path = tmp_path / 'lines.csv'
  path.write_text('\n'.join(texts))

  for block in (200, 1 << 20):
    monkeypatch.setattr(text_lines, '_BYTES', block)
    lines = ttl_lines.read_lines(Span(path), kind)
    items, tails = (
      [
        [ids[place].as_py() for place in row]
        for row in lists(getattr(lines, name))
      ]
      for name, ids in (('items', lines.item_ids), ('tails', lines.tail_ids))
    )
    found = dict(
      zip(lines.number.tolist(), zip(items, tails, strict=True), strict=True)
    )
    assert found == {
      number: line for number, line in enumerate(expected, 1) if line[0]
    }
    assert len(found) + len(lines.dropped) == 300 > len(found) > 0
    # Labels are in the order in which they first appear.
    for ids, column in ((lines.item_ids, 0), (lines.tail_ids, 1)):
      every = [i for line in found.values() for i in line[column]]
      assert ids.to_pylist() == list(first_numbers(every))


def test_lines_without_behaviours_are_dropped_counted_and_told(tmp_path):
  pretrain = [*LINES[:3], '0,0', '', *LINES[3:], ' 0']
  age = ['0,,5', *[f'{line},,5' for line in LINES], ',,7', '00,0,,5']
  folder = write(tmp_path / 'manual', pretrain=pretrain, age=age)
  told = []
  users = load(folder, 'age', on_progress=told.append)
  assert sum(len(split.label) for split in users.splits.values()) == 20
  assert users.vocabulary.labels == ['5']
  assert told[1:] == [
    f'{folder / PRETRAIN}: lines without behaviours are dropped, 3 in all; '
    'the first is line 4',
    f'{folder / AGE}: lines without behaviours are dropped, 3 in all; the '
    'first is line 1',
  ]
  # The other lines keep their numbers.
  found = {
    user
    for split in users.splits.values()
    for user in split.user_ids(np.arange(len(split.label)))
  }
  assert found == {str(line) for line in [1, 2, 3, *range(6, 23)]}


ERRORS = [
  ('pretrain', '5,x,6', "'x,6' is wrong there; a line is like 12,7,301, and"),
  ('pretrain', '5,1.5', "'.5' is wrong there"),
  ('pretrain', '5,1 6', "' 6' is wrong there"),
  ('pretrain', '5,"6"', "'"),
  ('pretrain', '5,\u00b2', 'is wrong there'),
  ('pretrain', '5,\x01', 'is wrong there'),
  ('pretrain', '5,\x006', 'is wrong there'),
  ('pretrain', '5,-6', "'-6' is wrong there"),
  ('pretrain', '5,', 'it ends too early'),
  ('pretrain', '5,,6', "',6' is wrong there"),
  ('pretrain', '5,1234567890123456789', "'9' is wrong there"),
  ('age', '', 'it ends too early; a line is like 12,7,301,,4, and'),
  ('age', '900,1,7', 'it ends too early'),
  ('age', '900,1,7,', 'it ends too early'),
  ('age', ',5', "',5' is wrong there"),
  ('age', '900, ,7', "' ,7' is wrong there"),
  ('age', '900,1,7,,', 'it ends too early'),
  ('age', '900,1,7,,5,,6', "',,6' is wrong there"),
  ('age', '900,1,7,,5,6', "',6' is wrong there"),
  ('age', '0,,x', "'x' is wrong there"),
  ('age', '900,1,7,,-1', "'-1' is wrong there"),
  ('age', '900,1,777,,5', f'item 777 is not in {PRETRAIN}'),
  ('age', '900,7,1,,5', f'no line of {PRETRAIN} has these behaviours'),
  (
    'click',
    '900,1,7,,5,',
    'early; a line is like 12,7,301,,55,902',
  ),
  ('click', '900,1,7,,5,,6', "',6' is wrong there"),
]


@pytest.mark.parametrize('block', [32, 1 << 20])
@pytest.mark.parametrize(('task', 'bad', 'reason'), ERRORS)
def test_a_bad_line_is_named(tmp_path, monkeypatch, task, bad, reason, block):
  monkeypatch.setattr(text_lines, '_BYTES', block)
  files = {
    'pretrain': list(LINES),
    'age': [f'{line},,5' for line in LINES],
    'click': [f'{line},,5,6' for line in LINES],
  }
  files[task][13] = bad
  folder = write(tmp_path / 'manual', **files)
  with pytest.raises(data.DataError) as error:
    load(folder, task)
  name = {'pretrain': PRETRAIN, 'age': AGE, 'click': CLICK}[task]
  assert f'{folder / name}, line 14: ' in str(error.value)
  assert reason in str(error.value)
  assert not list((tmp_path / 'prepared').rglob('*.0.0*'))


@pytest.mark.parametrize('lines', [['1,,2,,3', '4,5'], ['4,5', '1,,2,,3']])
def test_two_separators_do_not_make_up_for_none(tmp_path, lines):
  path = tmp_path / 'lines.csv'
  path.write_text('\n'.join(lines))
  reason = "',3' is wrong" if lines[0] == '1,,2,,3' else 'it ends too early'
  with pytest.raises(data.DataError, match=f'line 1: {reason}'):
    ttl_lines.read_lines(Span(path), 'ranking')


def test_a_missing_or_empty_file_says_where_it_goes_and_whence(tmp_path):
  folder = tmp_path / 'manual'
  for make in (lambda: None, lambda: write(folder, age=['1,,2'])):
    make()
    with pytest.raises(data.DataError) as error:
      load(folder, 'age')
    for part in (PRETRAIN, str(folder), 'unpack', 'AdaptSSR'):
      assert part in str(error.value)
  (folder / PRETRAIN).touch()
  with pytest.raises(data.DataError, match=f'{PRETRAIN} .*is empty.*ownload'):
    load(folder, 'age')


@pytest.mark.parametrize(
  ('task', 'reason'),
  [
    ('pretrain', 'train split of .*has no users'),
    ('age', 'item 900 is not in'),
  ],
)
def test_a_file_without_any_behaviours_is_an_error(tmp_path, task, reason):
  folder = write(tmp_path / 'manual', pretrain=['0'], age=['900,1,7,,1'])
  with pytest.raises(data.DataError, match=reason):
    load(folder, task)


def test_too_few_lines_to_split_is_an_error(tmp_path):
  folder = write(tmp_path / 'manual', pretrain=LINES, age=['900,1,7,,1'])
  with pytest.raises(
    data.DataError, match=f'train split of .*{AGE} has no users'
  ):
    load(folder, 'age')
