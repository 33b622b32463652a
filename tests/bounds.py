"""Bounds on float errors that hold on any CPU, in any order of summation."""

import chex
import jax
import numpy as np


def assert_same_training(actual, expected, start, *, share=1e-3):
  """Parameters after training are equal but for a share of their way.

  `max |actual - expected| <= share * max |expected - start|`

  An absolute bound would hold on one CPU and not on the next. Adam divides the
  mean of the gradients by the root of the mean of their squares: where terms
  cancel, it makes of their rounding, which differs with the instructions of the
  CPU, a part of a step of the size of the learning rate. What is wrong with an
  update is of the size of the way itself: a row that is left out, a step too
  few, a gradient of some devices only.

  Args:
    actual: a tree of arrays.
    expected: the same tree, trained in another manner.
    start: the same tree, before the training.
    share: of the way of the entry that went furthest in all of the tree. Where
      the terms of a gradient cancel, their rounding makes 1e-7 / epsilon of a
      step for each that they were large: epsilon should be 1e-4 or more.
  """
  chex.assert_trees_all_equal_shapes(actual, expected, start)
  way = _furthest(expected, start)
  assert way > 0, 'nothing was trained'
  off = _furthest(actual, expected)
  assert off <= share * way, f'{off:.3g} off, where entries moved by {way:.3g}'


def assert_same_to_rounding(actual, expected, *, share=1e-5, least=0.0):
  """Arrays are equal but for a share of the largest entry of each.

  `max |actual - expected| <= share * max(least, max |expected|)`

  An entry is a sum, whose rounding is that of its largest terms: what cancels
  in it leaves an entry near 0 that is no more exact than a large one.

  Args:
    actual: a tree of arrays.
    expected: the same tree, computed in another manner.
    share: of the largest entry; that of a float32 is rounded by up to 6e-8.
    least: the size of the terms of arrays in which all may cancel.
  """
  jax.tree.map(
    lambda found, wanted: np.testing.assert_allclose(
      found,
      wanted,
      rtol=0,
      atol=share * max(least, np.abs(wanted).max(initial=0)),
    ),
    actual,
    expected,
  )


def _furthest(tree, other):
  ways = jax.tree.map(
    lambda leaf, start: np.abs(np.subtract(leaf, start, dtype=np.float64)).max(
      initial=0
    ),
    tree,
    other,
  )
  return max(jax.tree.leaves(ways))
