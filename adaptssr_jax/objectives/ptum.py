"""PTUM: the user vector distinguishes the user's items from random ones."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from adaptssr_jax.objectives.users import (
  Encoding,
  LossAndMetrics,
  mean_loss,
  user_keys,
)
from adaptssr_jax.objectives.views import weighted_sum
from adaptssr_jax.table.lookup import look_up

# As in the paper: K, the number of behaviours that are cut off, and the number
# of negatives of each predicted behaviour.
NUM_NEXT, NUM_NEGATIVES = 2, 4


def mask_one(
  key: Key[Array, ''], items: Int[Array, 'length'], *, mask_id: int
) -> tuple[Int[Array, 'length'], Int[Array, '']]:
  """Masks one behaviour, drawn uniformly.

  Returns:
    The masked sequence `[length]`, and the masked item. For a user with fewer
    than two behaviours, the sequence unchanged, and 0.

  Example:
    >>> masked, item = mask_one(
    ...   jax.random.key(0), jnp.array([5, 5, 0]), mask_id=9
    ... )
    >>> sorted(masked.tolist()), int(item)
    ([0, 5, 9], 5)
  """
  n = jnp.sum(items != 0)
  index = jax.random.randint(key, (), 0, jnp.maximum(n, 1))
  index = jnp.where(n > 1, index, len(items))
  item = items.at[index].get(mode='fill', fill_value=0)
  return items.at[index].set(mask_id, mode='drop'), item


def cut_last(
  items: Int[Array, 'length'], *, num_next: int
) -> tuple[Int[Array, 'length'], Int[Array, 'next']]:
  """Cuts off the last behaviours, and keeps at least one.

  Args:
    num_next: number of behaviours that are cut off, if there are more.

  Returns:
    The behaviours that are kept, [length], and those that are cut off,
    [num_next], both padded with 0.

  Example:
    >>> kept, cut = cut_last(jnp.array([5, 6, 7, 0]), num_next=2)
    >>> kept.tolist(), cut.tolist()
    ([5, 0, 0, 0], [6, 7])
    >>> cut_last(jnp.array([5, 6, 0]), num_next=2)[1].tolist()
    [6, 0]
  """
  n = jnp.sum(items != 0)
  kept = jnp.maximum(n - num_next, jnp.minimum(n, 1))
  cut = items.at[kept + jnp.arange(num_next)].get(mode='fill', fill_value=0)
  return jnp.where(jnp.arange(len(items)) < kept, items, 0), cut


def draw_negatives(
  batch: dict[str, Array],
  key: Key[Array, ''],
  *,
  ends: Int[np.ndarray, ' ids'],
) -> dict[str, Array]:
  """Adds `negatives` to a batch: items drawn in proportion to their frequency.

  The paper draws a user first, and then one of the user's behaviours.

  Args:
    batch: the batch of a device; needs `example_id` int32 [users].
    key: the random key of this step.
    ends: cumulative counts of behaviours by item id, int32 [ids]; the first
      one, of padding, is 0.

  Returns:
    The batch and `negatives`, int32 [users, 1 + NUM_NEXT, NUM_NEGATIVES].

  Example:
    >>> batch = {'example_id': jnp.arange(2)}
    >>> ends = np.array([0, 0, 5, 5], np.int32)
    >>> found = draw_negatives(batch, jax.random.key(0), ends=ends)
    >>> found['negatives'].shape, set(found['negatives'].reshape(-1).tolist())
    ((2, 3, 4), {2})
  """
  # A key that differs from those of users and from that of sampled items.
  key = jax.random.fold_in(key, np.uint32(2**32 - 2))
  draw = functools.partial(
    jax.random.randint,
    shape=(1 + NUM_NEXT, NUM_NEGATIVES),
    minval=0,
    maxval=int(ends[-1]),
  )
  behaviours = jax.vmap(draw)(user_keys(key, batch['example_id']))
  found = jnp.searchsorted(jnp.asarray(ends), behaviours, side='right')
  return batch | {'negatives': found.astype(jnp.int32)}


def ptum_objective(
  params: dict[str, Any],
  batch: dict[str, Array],
  key: Key[Array, ''],
  *,
  encoding: Encoding,
) -> LossAndMetrics:
  """Masked behaviour prediction and next K behaviours prediction.

  -log softmax(E_c u)[x] over the candidates c = x and its negatives

  In the first task one behaviour x of the user is masked, and u is the vector
  of the masked sequence. In the second the last K behaviours are cut off; each
  is an x, and u is the vector of the sequence before them. The loss is the mean
  of the first over users plus the mean of the second over behaviours. A
  negative that equals x is left out.

  The paper scores E_c + p, with p an embedding of the predicted position. All
  candidates of a position share p, so it cancels in the softmax; it is left out
  here.

  Args:
    params: with `head` of `pooled_items.init_projection`.
    batch: also has `negatives`, see `draw_negatives`.

  Returns:
    The sum of the two losses, and the metrics `loss`, `masked_loss` and
    `accuracy` of the first task, `next_loss` and `next_accuracy` of the second.

  Reference:
    Wu et al., PTUM: Pre-training User Model from Unlabeled User Behaviors via
    Self-supervision, EMNLP Findings 2020 (https://arxiv.org/abs/2010.01494).
  """
  keys = user_keys(key, batch['example_id'], num=3)
  mask = functools.partial(mask_one, mask_id=encoding.encoder.mask_id)
  masked, item = jax.vmap(mask)(keys[:, 0], batch['items'])
  cut = functools.partial(cut_last, num_next=NUM_NEXT)
  kept, after = jax.vmap(cut)(batch['items'])
  vectors = encoding(params, jnp.stack([masked, kept]), keys[:, 1:].T)
  if 'projection' in params.get('head', {}):
    vectors = vectors @ params['head']['projection']
  # The masked sequence predicts one behaviour, the other one NUM_NEXT.
  users = jnp.stack([vectors[0]] + [vectors[1]] * NUM_NEXT, axis=1)
  labels = jnp.concatenate([item[:, None], after], axis=1)
  candidates = jnp.concatenate([labels[..., None], batch['negatives']], axis=-1)
  losses, right = candidate_losses(
    look_up(params['table'], candidates),
    users,
    where=batch['negatives'] != labels[..., None],
  )
  where = (labels > 0) & batch['where'][:, None]
  tasks = {'masked': slice(0, 1), 'next': slice(1, None)}
  parts = {
    name: mean_loss(
      losses[:, positions],
      where[:, positions],
      {'accuracy': right[:, positions]},
      axis_name=encoding.axis_name,
    )
    for name, positions in tasks.items()
  }
  return weighted_sum(parts, {})


def candidate_losses(
  candidates: Float[Array, 'users positions candidates dim'],
  users: Float[Array, 'users positions dim'],
  *,
  where: Bool[Array, 'users positions negatives'],
) -> tuple[Float[Array, 'users positions'], Bool[Array, 'users positions']]:
  """Cross entropy of the first candidate at each position.

  Args:
    candidates: vectors of the candidates, the positive one first,
      [users, positions, 1 + negatives, dim].
    users: the vectors that score them, [users, positions, dim].
    where: False leaves a negative out, [users, positions, negatives].

  Returns:
    The losses, and whether the first candidate has the highest score.
  """
  scores = jnp.einsum('upd,upcd->upc', users, candidates)
  negatives = jnp.where(where, scores[..., 1:], -jnp.inf)
  true = scores[..., 0]
  scores = jnp.concatenate([true[..., None], negatives], axis=-1)
  losses = jax.nn.logsumexp(scores, axis=-1) - true
  return losses, true > jnp.max(negatives, axis=-1)
