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
  RATIOS,
  SIMILAR,
  assert_uniform,
  draws,
  every_length,
  padded,
  views,
)

EDITS = ('substitute', 'insert')


def has_similar(item):
  return item > 0 and SIMILAR[item].any()


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


@pytest.mark.parametrize('name', AUGMENTATIONS)
def test_same_key_same_view_and_another_key_another(name):
  row = every_length(LENGTH)[12]
  apply = jax.jit(functools.partial(AUGMENTATIONS[name], ratio=0.4))
  keys = jax.random.split(jax.random.key(3), 8)
  seen = np.asarray(jax.jit(jax.vmap(apply, (0, None)))(keys, row))
  np.testing.assert_array_equal(apply(keys[2], row), seen[2])
  assert len(np.unique(seen, axis=0)) > 4
  # In the programs of others, too.
  with jax.enable_x64(True), jax.numpy_dtype_promotion('strict'):
    view = AUGMENTATIONS[name](keys[2], row, ratio=0.4)
  assert view.dtype == row.dtype
  np.testing.assert_array_equal(view, seen[2])


@pytest.mark.parametrize('name', [*AUGMENTATIONS, 'one_of'])
def test_is_traced_once_for_all_lengths(name):
  bound = {
    each: functools.partial(edit, ratio=0.4)
    for each, edit in AUGMENTATIONS.items()
  }
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
  apply = functools.partial(AUGMENTATIONS['substitute'], ratio=0.3)
  after = draws(apply, n=8)[:, :8]
  row = padded(8)[:8]
  able = np.array([has_similar(item) for item in row])
  assert_uniform((after != row).sum(0)[able])
  # 104 has three similar items.
  found = after[:, 3][after[:, 3] != 104]
  assert_uniform(np.bincount(found // 1000, minlength=4)[1:])


def test_every_slot_is_inserted_before_equally_often():
  # An item is inserted before three of four behaviours, all equally often.
  after = draws(functools.partial(AUGMENTATIONS['insert'], ratio=0.6), n=4)
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
@pytest.mark.parametrize('name', AUGMENTATIONS)
def test_refuses_a_ratio_outside_its_range(name, ratio):
  with pytest.raises(ValueError, match=r'ratio must be in \(0, 1\]'):
    AUGMENTATIONS[name](jax.random.key(0), every_length()[5], ratio=ratio)
