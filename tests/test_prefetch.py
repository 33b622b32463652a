"""Prefetched batches are the same, and no thread is left running."""

import contextlib
import threading
import time
import traceback

import jax
import numpy as np
import pytest

from adaptssr_jax.training.devices import AXIS, replicate, shard_batch
from adaptssr_jax.training.step import pmap_step
from experiments.run.batches import Prefetch


def made_by(threads):
  """Remembers the thread that made each batch."""

  def make(step):
    threads.append((step, threading.current_thread()))
    return step

  return make


def open_prefetch(make, steps, **settings):
  return contextlib.closing(Prefetch(make, steps, **settings))


def wait_until(holds):
  deadline = time.monotonic() + 10
  while not holds() and time.monotonic() < deadline:
    time.sleep(0.001)
  assert holds()


@pytest.mark.parametrize('steps', [range(3, 40), range(5, 6), range(5, 5)])
def test_batches_come_in_the_order_of_the_steps(steps):
  made = []
  with open_prefetch(made_by(made), steps) as batches:
    assert list(batches) == list(steps)
    assert list(batches) == []
  assert [step for step, _ in made] == list(steps)


def test_two_are_made_before_they_are_asked_for_and_no_more():
  made = []
  with open_prefetch(made_by(made), range(100)) as batches:
    for taken in range(3):
      wait_until(lambda: len(made) == 2 + taken)  # noqa: B023
      time.sleep(0.01)
      assert len(made) == 2 + taken
      assert next(batches) == taken
  assert {thread for _, thread in made} - {threading.current_thread()}


def broken_at_two(step):
  if step == 2:
    raise RuntimeError('the disk is gone')
  return step


def test_an_error_is_raised_where_its_batch_is_asked_for():
  with open_prefetch(broken_at_two, range(9)) as batches:
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(RuntimeError, match='the disk is gone') as caught:
      next(batches)
  frames = traceback.extract_tb(caught.value.__traceback__)
  assert frames[-1].name == 'broken_at_two'


def take(make, *, batches, error=None):
  with open_prefetch(make, range(50)) as made:
    for _ in range(batches):
      next(made)
    if error is not None:
      raise error


@pytest.mark.parametrize('error', [None, KeyboardInterrupt(), ValueError()])
def test_the_thread_ends_with_the_loop(error):
  made = []
  expected = (
    contextlib.nullcontext() if error is None else pytest.raises(type(error))
  )
  with expected:
    take(made_by(made), batches=3, error=error)
  assert {thread.is_alive() for _, thread in made} == {False}
  assert len(made) < 50


def test_a_loop_that_is_left_early_takes_the_thread_of_a_generator_along():
  made = []

  def batches():
    with open_prefetch(made_by(made), range(50)) as found:
      yield from found

  for batch in batches():
    if batch == 2:
      break
  wait_until(lambda: not any(thread.is_alive() for _, thread in made))
  assert len(made) < 50


def test_what_is_waited_for_is_counted():
  with open_prefetch(lambda step: time.sleep(0.05), range(2)) as batches:
    list(batches)
    slow = batches.waited
  # The thread may have begun a moment before it was asked.
  assert slow > 0.05

  with open_prefetch(lambda step: step, range(2)) as batches:
    time.sleep(0.1)
    list(batches)
    assert batches.waited < 0.05


def test_a_wait_for_busy_devices_is_not_one_for_input():
  def place(batch):
    time.sleep(0.1)
    return -batch

  with open_prefetch(
    lambda step: step, range(1, 4), to_devices=place
  ) as batches:
    assert list(batches) == [-1, -2, -3]
    assert batches.waited < 0.05


def summed(state, batch):
  total = jax.lax.psum(batch['items'].sum(), AXIS)
  return state + total, {'loss': total}


def numbers(step):
  items = np.arange(8 * 2 * 3, dtype=np.int32).reshape(8, 2, 3) + step
  return {'items': items, 'where': np.ones((8, 2), bool)}


def test_each_device_has_its_part_and_the_values_stay():
  batch, placed = numbers(1), shard_batch(numbers(1))
  for name, array in placed.items():
    assert array.dtype == batch[name].dtype
    np.testing.assert_array_equal(array, batch[name])
    for at, shard in enumerate(array.addressable_shards):
      assert shard.device == jax.local_devices()[at]
      np.testing.assert_array_equal(shard.data[0], batch[name][at])


def test_a_step_is_compiled_once(caplog):
  step_fn = pmap_step(summed, donate=True)
  state, expected = replicate(np.int32(0)), 0

  def make(step):
    return shard_batch(numbers(step))

  with jax.log_compiles(), open_prefetch(make, range(6)) as batches:
    for step, batch in enumerate(batches):
      state, _ = step_fn(state, batch)
      expected += numbers(step)['items'].sum()
  assert int(state) == expected
  compiled = [
    record
    for record in caplog.records
    if record.getMessage().startswith('Compiling jit(_fun)')
  ]
  assert len(compiled) == 1
