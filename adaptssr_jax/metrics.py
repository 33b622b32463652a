"""Metrics of fine-tuned models; all can be compiled by `jax.jit`."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Num


def accuracy(
  logits: Float[ArrayLike, '*batch classes'], labels: Int[ArrayLike, '*batch']
) -> Float[Array, '*batch']:
  """Tests for each example whether it is classified correctly.

  1[argmax_c logits_c = label]

  Args:
    logits: `[..., classes]`; among equal logits, the first one wins.
    labels: `[...]`, in 0..classes-1.

  Returns:
    `[...]`, 1 or 0 per example; average them over unmasked examples.

  Example:
    >>> logits = jnp.array([[2.0, 1.0], [0.0, 3.0], [5.0, 4.0]])
    >>> accuracy(logits, jnp.array([0, 1, 1])).tolist()
    [1.0, 1.0, 0.0]
  """
  best = jnp.argmax(jnp.asarray(logits), axis=-1)
  return (best == jnp.asarray(labels)).astype(jnp.float32)


def roc_auc(
  scores: Num[ArrayLike, ' batch'],
  labels: Bool[ArrayLike, ' batch'] | Int[ArrayLike, ' batch'],
  *,
  where: Bool[ArrayLike, ' batch'] | None = None,
) -> Float[Array, '']:
  """Computes the area under the ROC curve, the share of pairs ranked right.

  mean over pairs of 1[s+ > s-] + 1[s+ = s-] / 2

  Sorts the scores instead of comparing all pairs.

  Args:
    scores: `[batch]`, higher for positive examples.
    labels: `[batch]`, True or not 0 for positive examples.
    where: `[batch]`, False masks an example.

  Returns:
    A number in 0..1; nan if a class has no example, as in scikit-learn, or if
    an unmasked score is nan.

  Example:
    >>> roc_auc(jnp.array([0.1, 0.4, 0.4, 0.8]), jnp.array([0, 0, 1, 1])).item()
    0.875

  Reference:
    Fawcett, An introduction to ROC analysis, Pattern Recognition Letters 2006.
  """
  scores = jnp.asarray(scores)
  scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
  positive = jnp.asarray(labels) != 0
  valid = jnp.ones_like(positive) if where is None else jnp.asarray(where)
  positive, negative = valid & positive, valid & ~positive
  count = jnp.sum(negative)
  sorted_negatives = jnp.sort(jnp.where(negative, scores, jnp.inf))
  below = jnp.searchsorted(sorted_negatives, scores, side='left')
  # For a score of inf, `up_to` includes the masked examples, which are inf.
  up_to = jnp.searchsorted(sorted_negatives, scores, side='right')
  up_to = jnp.minimum(up_to, count)
  area = jnp.mean((below + up_to) / (2 * count), where=positive)
  # Sorting would rank nan as the highest score.
  return jnp.where(jnp.any(valid & jnp.isnan(scores)), jnp.nan, area)


def macro_f1(
  predictions: Int[ArrayLike, ' batch'],
  labels: Int[ArrayLike, ' batch'],
  *,
  num_classes: int,
  where: Bool[ArrayLike, ' batch'] | None = None,
) -> Float[Array, '']:
  """Averages the F1 scores of classes with equal weights.

  mean_c 2 hits_c / (predicted_c + true_c)

  The mean leaves out classes that are neither predicted nor true, like
  `sklearn.metrics.f1_score(average='macro')` by default.

  Args:
    predictions: `[batch]`, in 0..num_classes-1.
    labels: `[batch]`, in 0..num_classes-1.
    num_classes: Number of classes.
    where: `[batch]`, False masks an example.

  Returns:
    A number in 0..1; nan if all examples are masked.

  Example:
    >>> macro_f1(jnp.array([0, 0, 2]), jnp.array([0, 2, 2]), num_classes=9)
    Array(0.6666667, dtype=float32)
  """
  predictions, labels = jnp.asarray(predictions), jnp.asarray(labels)
  valid = jnp.ones(labels.shape) if where is None else jnp.asarray(where)
  valid = valid.astype(jnp.float32)
  true = jnp.bincount(labels, valid, length=num_classes)
  predicted = jnp.bincount(predictions, valid, length=num_classes)
  correct = (predictions == labels).astype(jnp.float32)
  hits = jnp.bincount(labels, valid * correct, length=num_classes)
  seen = true + predicted > 0
  return jnp.mean(2 * hits / jnp.maximum(true + predicted, 1), where=seen)


def rank(
  relevant: Num[ArrayLike, '*batch'],
  others: Num[ArrayLike, '*batch others'],
  *,
  where: Bool[ArrayLike, '*batch others'] | None = None,
) -> Float[Array, '*batch']:
  """Computes the rank of the one relevant item among others, from 1.

  1 + sum_j 1[o_j > r] + 1[o_j = r] / 2

  Items with equal scores share the mean of their ranks, so that a model that
  gives all items the same score is as good as a random order. The relevant item
  ranks below another item if the score of either is nan.

  Args:
    relevant: `[...]`, score of the relevant item.
    others: `[..., others]`, scores of the other items.
    where: `[..., others]`, False masks one of the others.

  Returns:
    `[...]`, a multiple of 0.5; exact up to 8 million others.

  Example:
    >>> rank(jnp.array(0.5), jnp.array([0.9, 0.5, 0.5, 0.1])).item()
    3.0
  """
  relevant, others = jnp.asarray(relevant)[..., None], jnp.asarray(others)
  lower, equal = others < relevant, others == relevant
  behind = jnp.where(lower, 0, jnp.where(equal, 0.5, 1))
  behind = behind.astype(jnp.float32)
  return 1 + jnp.sum(behind, axis=-1, where=where)


def hit_rate(
  ranks: Num[ArrayLike, '*batch'], *, k: int
) -> Float[Array, '*batch']:
  """Tests whether the one relevant item is among the first k.

  1[rank <= k]

  Args:
    ranks: `[...]`, ranks of the relevant items, from 1; see `rank`.
    k: Length of the list; a rank beyond it gives 0.

  Returns:
    `[...]`, 1 or 0 per example.

  Example:
    >>> hit_rate(jnp.array([1.0, 5.0, 5.5]), k=5).tolist()
    [1.0, 1.0, 0.0]
  """
  # As floats: an int8 cannot be compared with a k of 200.
  return (jnp.asarray(ranks, jnp.float32) <= k).astype(jnp.float32)


def reciprocal_rank(
  ranks: Num[ArrayLike, '*batch'], *, k: int
) -> Float[Array, '*batch']:
  """Inverts the rank of the one relevant item; the mean is MRR@k.

  1[rank <= k] / rank

  Args:
    ranks: `[...]`, ranks of the relevant items, from 1; see `rank`.
    k: Length of the list; a rank beyond it gives 0.

  Returns:
    `[...]`, in 0..1.

  Example:
    >>> reciprocal_rank(jnp.array([1.0, 5.0, 5.5]), k=5).tolist()
    [1.0, 0.20000000298023224, 0.0]
  """
  return hit_rate(ranks, k=k) / jnp.asarray(ranks, jnp.float32)


def ndcg(ranks: Num[ArrayLike, '*batch'], *, k: int) -> Float[Array, '*batch']:
  """Discounts the one relevant item by the logarithm of its rank.

  1[rank <= k] / log2(rank + 1)

  With one relevant item the ideal DCG is 1, so this is the NDCG.

  Args:
    ranks: `[...]`, ranks of the relevant items, from 1; see `rank`.
    k: Length of the list; a rank beyond it gives 0.

  Returns:
    `[...]`, in 0..1.

  Example:
    >>> ndcg(jnp.array([1.0, 3.0, 4.0]), k=3).tolist()
    [1.0, 0.5, 0.0]

  Reference:
    Järvelin & Kekäläinen, Cumulated gain-based evaluation of IR techniques,
    ACM TOIS 2002.
  """
  # As floats: adding 1 to the largest int8 would overflow.
  ranks = jnp.asarray(ranks, jnp.float32)
  return hit_rate(ranks, k=k) / jnp.log2(ranks + 1)
