"""The serving example: vectors of an exported encoder over HTTP."""

import asyncio
import concurrent.futures
import importlib.util
import pathlib
import threading
import time

import numpy as np
import pytest
from fastapi.testclient import TestClient
from test_export import folder, loader_of, run, unchecked_shapes

__all__ = ['folder', 'run', 'unchecked_shapes']
APP = pathlib.Path(__file__).parents[1] / 'examples' / 'serve' / 'app.py'


@pytest.fixture(scope='module')
def module():
  spec = importlib.util.spec_from_file_location('serve_app', APP)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope='module')
def client(module, folder):
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('ENCODER', str(folder))
    with TestClient(module.app) as client:
      yield client


def ask(client, histories):
  answer = client.post('/vectors', json={'histories': histories})
  assert answer.status_code == 200, answer.text
  return answer.json()


def test_vectors_are_those_of_the_loader(client, folder):
  histories = [['item 3', 'item 7'], ['new', 'item 1'], []]
  answer = ask(client, histories)
  assert answer['unknown_items'] == 1
  expected = loader_of(folder)(histories)
  np.testing.assert_allclose(answer['vectors'], expected, atol=1e-6)
  np.testing.assert_array_equal(answer['vectors'][-1], 0)
  assert ask(client, []) == {'vectors': [], 'unknown_items': 0}


def test_of_a_long_history_the_last_behaviours_count(client, folder):
  limit = loader_of(folder).max_length
  last = [f'item {number % 7}' for number in range(limit)]
  long, short = ask(client, [['item 7'] * 5 + last, last])['vectors']
  np.testing.assert_allclose(long, short, atol=1e-6)


@pytest.mark.parametrize(
  ('histories', 'words'),
  [
    (None, 'valid list'),
    ('item 3', 'valid list'),
    (['item 3'], 'valid list'),
    ([[3]], 'valid string'),
    ([[None]], 'valid string'),
    ([[]] * 1025, 'at most 1024 items'),
    ([['item 3'] * 10_001], 'at most 10000 items'),
  ],
)
def test_bad_requests_are_refused_and_say_where(client, histories, words):
  answer = client.post('/vectors', json={'histories': histories})
  assert answer.status_code == 422
  assert words in answer.text
  assert 'histories' in answer.json()['detail'][0]['loc']


def test_requests_that_wait_are_encoded_together(module):
  sizes = []

  def encode(users):
    sizes.append(len(users))
    return np.array([[float(len(user))] for user in users])

  async def ask_all(batcher, requests):
    return await asyncio.gather(*map(batcher, requests))

  requests = [[['a'] * n for n in range(size)] for size in (1, 3, 2)]
  batcher = module.Batcher(encode)
  answers = asyncio.run(ask_all(batcher, requests))
  assert answers == [[[0.0]], [[0.0], [1.0], [2.0]], [[0.0], [1.0]]]
  # The others came while the first was encoded.
  assert sizes == [1, 5]
  # No batch is larger than the largest request may be.
  sizes.clear()
  asyncio.run(ask_all(module.Batcher(encode), [[['a']] * 600] * 3))
  assert sizes == [600, 600, 600]


def test_a_failure_is_told_to_all_who_wait(module):
  def fail(users):
    raise RuntimeError('no memory')

  async def ask_all(batcher):
    return await asyncio.gather(
      *(batcher([['a']]) for _ in range(3)), return_exceptions=True
    )

  answers = asyncio.run(ask_all(module.Batcher(fail)))
  assert ['no memory' in str(answer) for answer in answers] == [True] * 3


def test_a_request_that_is_cancelled_takes_no_other_with_it(module):
  async def ask_all():
    # The first is taken at once, the others together, by the second.
    batcher = module.Batcher(lambda users: np.zeros((len(users), 1)))
    tasks = [asyncio.create_task(batcher([['a']])) for _ in range(4)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    tasks[2].cancel()
    return await asyncio.gather(*tasks, return_exceptions=True)

  first, second, third, fourth = asyncio.run(ask_all())
  assert isinstance(first, asyncio.CancelledError)
  assert isinstance(third, asyncio.CancelledError)
  assert second == fourth == [[0.0]]


def test_a_request_that_is_cancelled_while_it_encodes_fails_no_other(module):
  async def ask_all():
    begun = threading.Event()

    def encode(users):
      begun.set()
      time.sleep(0.3)
      return np.zeros((len(users), 1))

    batcher = module.Batcher(encode)
    tasks = [asyncio.create_task(batcher([['a']])) for _ in range(3)]
    # The first is encoded alone; the second then takes the third with it.
    for task in tasks[:2]:
      await asyncio.to_thread(begun.wait)
      begun.clear()
      task.cancel()
    return await asyncio.gather(*tasks, return_exceptions=True)

  *cancelled, last = asyncio.run(ask_all())
  assert [type(of) for of in cancelled] == [asyncio.CancelledError] * 2
  assert last == [[0.0]]


def test_requests_of_many_clients_get_their_own_vectors(client, folder):
  histories = [
    [f'item {number % 8}'] * (number % 3 + 1) for number in range(24)
  ]
  expected = loader_of(folder)(histories)
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    answers = list(pool.map(lambda one: ask(client, [one]), histories))
  found = [answer['vectors'][0] for answer in answers]
  np.testing.assert_allclose(found, expected, atol=1e-6)
