"""Insert and substitute; and what holds of every augmentation of a ratio."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptssr_jax import augment
from tests.test_augment import (
  AUGMENTATIONS,
  LENGTH,
  assert_uniform,
  draws,
  every_length,
  padded,
)

RATIOS = (0.1, 0.4, 1.0)
# Behaviours are 101..120. Multiples of 5 have no similar item; the others, i,
# have one to three: i + 1000, i + 2000, i + 3000.
SIMILAR = np.zeros((123, 3), np.int32)
for _item in range(101, 121):
  _count = 0 if _item % 5 == 0 else 1 + _item % 3
  SIMILAR[_item, :_count] = _item + 1000 * np.arange(1, _count + 1)
EDITS = {
  name: functools.partial(getattr(augment, name), similar=SIMILAR)
  for name in ('substitute', 'insert')
}
EVERY = AUGMENTATIONS | EDITS


def has_similar(item):
  return item > 0 and SIMILAR[item].any()


@functools.cache
def views(name, ratio):
  """Nine sequences of every length 0..LENGTH, before and after."""
  items = jnp.tile(every_length(LENGTH), (9, 1))
  keys = jax.random.split(jax.random.key(0), len(items))
  return np.asarray(items), np.asarray(of_ratio(name, ratio, keys, items))


@functools.partial(jax.jit, static_argnums=0)
def of_ratio(name, ratio, keys, items):
  """One program for all ratios."""
  return jax.vmap(functools.partial(EDITS[name], ratio=ratio))(keys, items)


@pytest.mark.parametrize('ratio', RATIOS)
@pytest.mark.parametrize('name', EDITS)
def test_keeps_dtype_and_shape_and_padding_stays_at_the_end(name, ratio):
  items, after = views(name, ratio)
  assert after.dtype == np.int32
  assert after.shape == items.shape
  for view in after:
    left = (view != 0).sum()
    assert np.all(view[:left] != 0)


@pytest.mark.parametrize('ratio', RATIOS)
def test_substitute_replaces_an_exact_number_by_similar_items(ratio):
  items, after = views('substitute', ratio)
  for row, view in zip(items, after, strict=True):
    n = (row != 0).sum()
    able = sum(map(has_similar, row))
    new = view != row
    assert new.sum() == min(math.ceil(ratio * n), able)
    for item, found in zip(row[new], view[new], strict=True):
      assert found in SIMILAR[item]


@pytest.mark.parametrize('ratio', RATIOS)
def test_insert_puts_similar_items_just_before(ratio):
  items, after = views('insert', ratio)
  for row, view in zip(items, after, strict=True):
    n, left = (row != 0).sum(), (view != 0).sum()
    able = sum(map(has_similar, row[1:] if n == LENGTH else row))
    put = min(math.ceil(ratio * n), able)
    assert left == min(n + put, LENGTH)
    view, kept = list(view[:left]), view[:left] < 1000
    # Behaviours are dropped from the front, and stay in order.
    ours = np.array(view)[kept]
    np.testing.assert_array_equal(ours, row[n - len(ours) : n])
    # At most one item is inserted before each, and is similar to it.
    for at in np.flatnonzero(~kept):
      assert at + 1 < left
      assert view[at] in SIMILAR[view[at + 1]]
    if n < LENGTH:
      assert (~kept).sum() >= min(put, LENGTH - n)
    if put:
      assert (~kept).any()


@pytest.mark.parametrize('name', EVERY)
def test_same_key_same_view_and_another_key_another(name):
  row = every_length(LENGTH)[12]
  apply = jax.jit(functools.partial(EVERY[name], ratio=0.4))
  keys = jax.random.split(jax.random.key(3), 8)
  seen = np.asarray(jax.jit(jax.vmap(apply, (0, None)))(keys, row))
  np.testing.assert_array_equal(apply(keys[2], row), seen[2])
  assert len(np.unique(seen, axis=0)) > 4


@pytest.mark.parametrize('name', [*EVERY, 'one_of'])
def test_is_traced_once_for_all_lengths(name):
  bound = {each: functools.partial(f, ratio=0.4) for each, f in EVERY.items()}
  apply = bound.get(name, augment.one_of(*bound.values()))
  traces = []

  @jax.jit
  def counted(key, items):
    traces.append(name)
    return apply(key, items)

  for n in (0, 1, LENGTH):
    counted(jax.random.key(n), every_length(LENGTH)[n])
  assert len(traces) == 1


def test_every_position_and_every_similar_item_is_equally_likely():
  apply = functools.partial(EDITS['substitute'], ratio=0.3)
  after = draws(apply, n=8)[:, :8]
  row = padded(8)[:8]
  able = np.array([has_similar(item) for item in row])
  assert_uniform((after != row).sum(0)[able])
  # 104 has three similar items.
  found = after[:, 3][after[:, 3] != 104]
  assert_uniform(np.bincount(found // 1000, minlength=4)[1:])


def test_every_slot_is_inserted_before_equally_often():
  # An item is inserted before three of four behaviours, all equally often.
  after = draws(functools.partial(EDITS['insert'], ratio=0.6), n=4)
  assert np.all((after != 0).sum(1) == 7)
  before = [
    ((after > 1000) & (after % 1000 == i)).any(1).mean()
    for i in range(101, 105)
  ]
  np.testing.assert_allclose(before, 0.75, atol=0.04)


def test_a_full_sequence_keeps_its_most_recent_behaviours():
  row = jnp.array([1, 2, 3])
  similar = jnp.array([[0], [7], [8], [9], [0]])
  full = augment.insert(jax.random.key(0), row, ratio=1, similar=similar)
  np.testing.assert_array_equal(full, [2, 9, 3])
  # An inserted item is never dropped.
  keys = jax.random.split(jax.random.key(1), 20)
  insert = functools.partial(augment.insert, ratio=0.1, similar=similar)
  for one in jax.jit(jax.vmap(insert, (0, None)))(keys, row).tolist():
    assert one in ([8, 2, 3], [2, 9, 3])


@pytest.mark.parametrize('name', EDITS)
def test_without_similar_items_all_is_kept(name):
  edit = jax.jit(functools.partial(getattr(augment, name), ratio=1))
  row = jnp.array([3, 1, 2, 0])
  none = jnp.zeros((5, 2), jnp.int32)
  np.testing.assert_array_equal(edit(jax.random.key(0), row, similar=none), row)
  # The similar items of padding are ignored.
  odd = none.at[0].set(4)
  np.testing.assert_array_equal(edit(jax.random.key(0), row, similar=odd), row)


@pytest.mark.parametrize('ratio', [0, -0.1, 1.01, 60, math.nan])
@pytest.mark.parametrize('name', EVERY)
def test_refuses_a_ratio_outside_its_range(name, ratio):
  with pytest.raises(ValueError, match=r'ratio must be in \(0, 1\]'):
    EVERY[name](jax.random.key(0), every_length()[5], ratio=ratio)
