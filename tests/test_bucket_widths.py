"""The chosen bucket widths leave the least padding of all choices."""

import itertools

import numpy as np
import pytest

from adaptssr_jax.ops.buckets import bucket_widths


def padding(widths, lengths):
  """The mean width at which lengths are encoded, in plain loops."""
  return np.mean(
    [min(width for width in widths if width >= length) for length in lengths]
  )


@pytest.mark.parametrize('max_length', [3, 4, 6, 22, 24])
@pytest.mark.parametrize('seed', [0, 1, 2])
def test_widths_are_the_best_of_all(seed, max_length):
  rng = np.random.default_rng(seed)
  lengths = rng.choice(
    [0, 1, 4, 5, 8, 13, 17, 30], 40, p=rng.dirichlet([1] * 8)
  )
  cut = np.minimum(lengths, max_length)
  inner = range(4, max_length, 4)
  for programs in range(1, 9):
    widths = bucket_widths(lengths, programs=programs, max_length=max_length)
    assert 1 <= len(widths) <= programs
    assert widths == tuple(sorted(set(widths)))
    assert widths[-1] == max_length
    assert set(widths[:-1]) <= set(inner)
    best = min(
      padding((*some, max_length), cut)
      for count in range(programs)
      for some in itertools.combinations(inner, count)
    )
    np.testing.assert_allclose(padding(widths, cut), best, rtol=1e-12)


def test_a_width_that_saves_nothing_is_left_out():
  widths = bucket_widths(np.array([7, 8, 20]), programs=5, max_length=20)
  assert widths == (8, 20)
  assert bucket_widths(np.array([90]), programs=5, max_length=20) == (20,)


@pytest.mark.parametrize('name', ['programs', 'max_length'])
def test_bad_settings_are_refused(name):
  settings = {'programs': 2, 'max_length': 8} | {name: 0}
  with pytest.raises(ValueError, match=f'{name} must be at least 1, not 0'):
    bucket_widths(np.array([1]), **settings)
  with pytest.raises(ValueError, match='the number of lengths must be at'):
    bucket_widths(np.array([], int), programs=2, max_length=8)
