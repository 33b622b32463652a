"""Augmentations: each length, exact counts, padding at the end, keys."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptssr_jax import augment

LENGTH = 20
MASK_ID = 999
RATIOS = (0.1, 0.6, 1.0)
# Behaviours are 101..120. Multiples of 5 have no similar item; the others, i,
# have one to three: i + 1000, i + 2000, i + 3000.
SIMILAR = np.zeros((123, 3), np.int32)
for _item in range(101, 121):
  _count = 0 if _item % 5 == 0 else 1 + _item % 3
  SIMILAR[_item, :_count] = _item + 1000 * np.arange(1, _count + 1)
AUGMENTATIONS = {
  'crop': augment.crop,
  'mask': functools.partial(augment.mask, mask_id=MASK_ID),
  'reorder': augment.reorder,
  'substitute': functools.partial(augment.substitute, similar=SIMILAR),
  'insert': functools.partial(augment.insert, similar=SIMILAR),
}


def padded(n, length=LENGTH):
  """A sequence of n distinct behaviours."""
  return np.where(np.arange(length) < n, np.arange(length) + 101, 0)


def every_length(length=LENGTH):
  return jnp.array([padded(n, length) for n in range(length + 1)], jnp.int32)


@functools.cache
def views(name, ratio):
  """Nine sequences of every length 0..LENGTH, before and after."""
  items = jnp.tile(every_length(), (9, 1))
  keys = jax.random.split(jax.random.key(0), len(items))
  return np.asarray(items), np.asarray(of_ratio(name, ratio, keys, items))


@functools.partial(jax.jit, static_argnums=0)
def of_ratio(name, ratio, keys, items):
  """One program for all ratios; a test below compares it with fixed ratios."""
  apply = functools.partial(AUGMENTATIONS[name], ratio=ratio)
  return jax.vmap(apply)(keys, items)


def size(ratio, n):
  return math.ceil(ratio * n)


@pytest.mark.parametrize('ratio', RATIOS)
@pytest.mark.parametrize('name', AUGMENTATIONS)
def test_keeps_dtype_and_shape_and_padding_stays_at_the_end(name, ratio):
  items, after = views(name, ratio)
  assert after.dtype == np.int32
  assert after.shape == items.shape
  for view in after:
    assert np.all(view[: (view != 0).sum()] != 0)


@pytest.mark.parametrize('ratio', RATIOS)
def test_crop_keeps_a_contiguous_run(ratio):
  items, after = views('crop', ratio)
  for row, view in zip(items, after, strict=True):
    n = (row != 0).sum()
    kept = size(ratio, n)
    runs = [list(row[s : s + kept]) for s in range(n - kept + 1)]
    assert list(view[view != 0]) in runs


@pytest.mark.parametrize('ratio', RATIOS)
def test_mask_replaces_an_exact_number_of_positions(ratio):
  items, after = views('mask', ratio)
  for row, view in zip(items, after, strict=True):
    n, masked = (row != 0).sum(), view == MASK_ID
    assert masked.sum() == max(min(size(ratio, n), n - 1), 0)
    np.testing.assert_array_equal(view[~masked], row[~masked])


@pytest.mark.parametrize('ratio', RATIOS)
def test_reorder_permutes_one_run(ratio):
  items, after = views('reorder', ratio)
  for row, view in zip(items, after, strict=True):
    n = (row != 0).sum()
    np.testing.assert_array_equal(np.sort(view), np.sort(row))
    moved = np.flatnonzero(view != row)
    if len(moved):
      assert moved[-1] - moved[0] + 1 <= size(ratio, n)


# In float32, 0.6 * n is above the integer at each of these lengths.
def test_sizes_are_those_of_float64():
  lengths = [25, 45, 50, 85, 90, 95, 100]
  expected = [15, 27, 30, 51, 54, 57, 60]
  items = every_length(100)[np.array(lengths)]
  keys = jax.random.split(jax.random.key(0), len(lengths))
  crop = functools.partial(augment.crop, ratio=0.6)
  mask = functools.partial(augment.mask, ratio=0.6, mask_id=MASK_ID)
  assert list((jax.jit(jax.vmap(crop))(keys, items) != 0).sum(-1)) == expected
  masked = jax.jit(jax.vmap(mask))(keys, items) == MASK_ID
  assert list(masked.sum(-1)) == expected
  assert (crop(keys[0], items[0]) != 0).sum() == expected[0]


def assert_uniform(counts):
  """All counts are within 5 standard deviations of an even share."""
  counts = np.asarray(counts)
  share, total = 1 / len(counts), counts.sum()
  spread = math.sqrt(total * share * (1 - share))
  assert np.all(np.abs(counts - total * share) < 5 * spread), counts


def draws(apply, n, number=4000):
  keys = jax.random.split(jax.random.key(11), number)
  row = jnp.asarray(padded(n), jnp.int32)
  return np.asarray(jax.jit(jax.vmap(apply, (0, None)))(keys, row))


def test_every_crop_is_equally_likely():
  after = draws(functools.partial(augment.crop, ratio=0.5), n=8)
  assert_uniform(np.bincount(after[:, 0] - 101, minlength=5))


def test_every_position_is_masked_equally_often():
  apply = functools.partial(augment.mask, ratio=0.25, mask_id=MASK_ID)
  after = draws(apply, n=8)
  assert_uniform((after[:, :8] == MASK_ID).sum(0))


def test_every_order_is_equally_likely():
  after = draws(functools.partial(augment.reorder, ratio=1.0), n=3)
  assert_uniform(np.unique(after[:, :3], axis=0, return_counts=True)[1])


def test_every_run_is_shuffled_equally_often():
  # A run of 2 of 4 behaviours is swapped or not; where it is swapped, the
  # result shows which of the three starts was drawn.
  after = draws(functools.partial(augment.reorder, ratio=0.5), n=4)
  moved = after[:, :4] != padded(4)[:4]
  swapped = moved.any(-1)
  assert_uniform([swapped.sum(), (~swapped).sum()])
  assert_uniform(np.bincount(moved[swapped].argmax(-1), minlength=3))


def constant(key, items, value):
  return jnp.full_like(items, value)


def test_one_of_draws_uniformly_for_each_sequence():
  choices = [functools.partial(constant, value=v) for v in range(3)]
  after = draws(augment.one_of(*choices), n=5)
  np.testing.assert_array_equal(after, after[:, :1].repeat(LENGTH, 1))
  assert_uniform(np.bincount(after[:, 0], minlength=3))


def test_one_of_gives_the_choice_a_key_of_its_own():
  # If they shared a key, a chosen augmentation would always draw the same.
  crop = functools.partial(augment.crop, ratio=0.5)
  keep = functools.partial(augment.crop, ratio=1.0)
  after = draws(augment.one_of(crop, keep), n=8)
  cropped = after[after[:, 4] == 0]
  assert_uniform(np.bincount(cropped[:, 0] - 101, minlength=5))


def test_refuses_padding_as_mask_id():
  with pytest.raises(ValueError, match='mask_id must be positive'):
    augment.mask(jax.random.key(0), every_length()[5], ratio=0.5, mask_id=0)


def test_one_of_refuses_nothing():
  with pytest.raises(ValueError, match='one_of needs'):
    augment.one_of()


def slices(lengths, repeats=40):
  """Sequences of every length 0..LENGTH, before and after."""
  items = jnp.tile(every_length(), (repeats, 1))
  keys = jax.random.split(jax.random.key(5), len(items))
  draw = functools.partial(augment.random_slice, lengths=lengths)
  return np.asarray(items), np.asarray(jax.jit(jax.vmap(draw))(keys, items))


@pytest.mark.parametrize('lengths', [(1, 1), (3, 7), (15, 100)])
def test_a_slice_is_a_run_of_the_history(lengths):
  low, high = lengths
  items, after = slices(lengths)
  assert (after.dtype, after.shape) == (np.int32, items.shape)
  for row, view in zip(items, after, strict=True):
    n, kept = (row != 0).sum(), (view != 0).sum()
    assert min(low, n) <= kept <= min(high, n)
    assert not view[kept:].any()
    if kept:
      start = list(row).index(view[0])
      np.testing.assert_array_equal(view[:kept], row[start : start + kept])


def test_slices_have_all_lengths_and_all_places():
  items, after = slices((3, 7), repeats=400)
  of_ten = after[(items != 0).sum(axis=1) == 10]
  kept = (of_ten != 0).sum(axis=1)
  shares = np.bincount(kept, minlength=8)[3:] / len(kept)
  # Uniform: a fifth each, with a standard error of .02.
  np.testing.assert_allclose(shares, 0.2, atol=0.08)
  starts = of_ten[kept == 7][:, 0] - 101
  assert set(starts) == {0, 1, 2, 3}


def test_slices_are_of_the_key():
  row = every_length()[-1]
  draw = functools.partial(augment.random_slice, lengths=(2, 9))
  keys = jax.random.split(jax.random.key(3), 8)
  seen = np.asarray(jax.vmap(draw, (0, None))(keys, row))
  np.testing.assert_array_equal(draw(keys[2], row), seen[2])
  assert len(np.unique(seen, axis=0)) > 4


@pytest.mark.parametrize('lengths', [(0, 3), (4, 3), (-1, -1)])
def test_slices_of_no_length_are_refused(lengths):
  with pytest.raises(ValueError, match='lengths must be 1 <= low <= high'):
    augment.random_slice(jax.random.key(0), jnp.array([1]), lengths=lengths)


def test_compose_applies_each_by_its_own_key():
  key, row = jax.random.key(1), every_length()[-1]
  cut = functools.partial(augment.random_slice, lengths=(8, 8))
  keep = functools.partial(augment.crop, ratio=0.5)
  first, second = jax.random.split(key)
  np.testing.assert_array_equal(
    augment.compose(cut, keep)(key, row), keep(second, cut(first, row))
  )


@pytest.mark.parametrize('name', AUGMENTATIONS)
def test_a_ratio_may_change_from_step_to_step(name):
  items = every_length(100)
  keys = jax.random.split(jax.random.key(0), len(items))
  compiled = of_ratio._cache_size()
  for ratio in (0.015, 0.3, 0.6, 1.0):
    fixed = functools.partial(AUGMENTATIONS[name], ratio=ratio)
    np.testing.assert_array_equal(
      of_ratio(name, ratio, keys, items), jax.vmap(fixed)(keys, items)
    )
  assert of_ratio._cache_size() == compiled + 1


def test_two_of_draws_two_different_ones():
  choices = [functools.partial(constant, value=v) for v in range(3)]
  after = draws(augment.two_of(*choices), n=5)
  assert after.shape == (4000, 2, LENGTH)
  first, second = after[..., 0].T
  # All six ordered pairs.
  assert np.all(first != second)
  assert_uniform(np.unique(3 * first + second, return_counts=True)[1])


def test_two_of_gives_each_view_a_key_of_its_own():
  crop = functools.partial(augment.crop, ratio=0.5)
  after = draws(augment.two_of(crop, crop), n=8)[..., 0] - 101
  pairs = np.unique(5 * after[:, 0] + after[:, 1], return_counts=True)[1]
  assert len(pairs) == 25
  assert_uniform(pairs)


def test_two_of_refuses_one():
  with pytest.raises(ValueError, match='two_of needs 2 or more'):
    augment.two_of(augment.crop)


def test_a_share_in_float32_is_its_digits():
  items = jnp.array([1, 2, 3, 4, 5])
  for ratio in (np.float32(0.4), np.float64(0.4), 0.4):
    cropped = augment.crop(jax.random.key(0), items, ratio=ratio)
    assert jnp.sum(cropped != 0) == 2


def test_mask_keeps_small_integers():
  items = np.array([1, 2, 3], np.int8)
  key = jax.random.key(0)
  masked = augment.mask(key, items, ratio=0.5, mask_id=np.int64(9))
  assert masked.dtype == np.int8
  with pytest.raises(ValueError, match='mask_id 300 does not fit'):
    augment.mask(key, items, ratio=0.5, mask_id=300)
