"""MSDP: a prefix predicts the distribution of the behaviours after it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from adaptssr_jax import augment
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.objectives.next_items import prefix_and_next
from adaptssr_jax.objectives.pooled_items import predict_items
from adaptssr_jax.objectives.users import (
  Encoding,
  LossAndMetrics,
  mean_loss,
  user_keys,
)
from adaptssr_jax.objectives.views import weighted_sum
from adaptssr_jax.ops.similarity import unit_length


def prefix_and_window(
  key: Key[Array, ''],
  items: Int[Array, 'length'],
  *,
  max_length: int,
  max_window: int,
) -> tuple[Int[Array, 'kept'], Int[Array, 'window']]:
  """Cuts a history at a random place, and takes a window of random length.

  All places are equally likely, and then all lengths that are possible there.

  Args:
    items: the whole history, padded with 0.
    max_length: number of last behaviours kept before the cut.
    max_window: largest length of the window, which begins at the cut.

  Returns:
    The prefix, `[min(length, max_length)]`, and the window, `[max_window]`; see
    `prefix_and_next`.
  """
  cut_key, size_key = jax.random.split(key)
  prefix, after = prefix_and_next(
    cut_key, items, max_length=max_length, num_next=max_window
  )
  left = jnp.maximum(jnp.sum(after != 0), 1)
  size = jax.random.randint(size_key, (), 1, left + 1)
  return prefix, jnp.where(jnp.arange(max_window) < size, after, 0)


def window_bucket(
  windows: Int[Array, 'users window'],
) -> Int[Array, ' users']:
  """The bucket of the length n of each window: floor(log2 n); 0 for n = 0.

  Example:
    >>> windows = jnp.arange(5)[:, None] > jnp.arange(4)[None]
    >>> window_bucket(windows.astype(int)).tolist()
    [0, 0, 1, 1, 2]
  """
  powers = 2 ** jnp.arange(1, num_buckets(windows.shape[1]))
  count = jnp.sum(windows != 0, axis=1, keepdims=True)
  return jnp.sum(count >= powers[None], axis=1)


def num_buckets(max_window: int) -> int:
  """The number of buckets of the lengths 1..max_window."""
  return max_window.bit_length()


def msdp_objective(
  params: dict[str, Any],
  batch: dict[str, Array],
  key: Key[Array, ''],
  *,
  encoding: Encoding,
  max_window: int = 32,
  regularizer: float = 0.1,
  ratio: float = 0.3,
) -> LossAndMetrics:
  """Cross entropy of the items' shares in a window, given the prefix before it.

  - sum over x of share(x) log softmax(E (u + p_W) + b)[x]
    + regularizer * (1 - cosine(P u', stop(u)) + 1 - cosine(P u, stop(u'))) / 2

  Here share(x) is the share of item x in the window, in which repeated items
  are included, unlike in `next_items_objective`; p_W is a prompt, learned for
  each bucket of window lengths, see `window_bucket`; and u' is the vector of
  the prefix with a share of its behaviours masked.

  The paper uses several time windows per user. We did not have its text and
  assume: one window of W behaviours per user and step, starting at the cut; a
  prompt that is added to the user vector; a linear predictor P that starts as
  the identity; and the defaults of `regularizer` and `ratio`.

  Args:
    params: see `predict_views`; `head` also has the result of `init_msdp`.
    max_window: largest window length, in behaviours.
    regularizer: weight of the SimSiam term; with 0 the masked prefix is not
      encoded.
    ratio: share of the prefix that is masked for that term.

  Returns:
    The loss, and the metrics `loss` and, with the regularizer,
    `distribution_loss` and `regularizer_loss`.

  Reference:
    Fu et al., Robust User Behavioral Sequence Representation via Multi-scale
    Stochastic Distribution Prediction, CIKM 2023. The regularizer is from Chen
    & He, SimSiam, CVPR 2021.
  """
  encoder, axis_name = encoding.encoder, encoding.axis_name
  keys = user_keys(key, batch['example_id'], num=4)
  cut = functools.partial(
    prefix_and_window, max_length=encoder.max_length, max_window=max_window
  )
  prefixes, windows = jax.vmap(cut)(keys[:, 0], batch['items'])
  sequences = [prefixes]
  if regularizer:
    mask = functools.partial(augment.mask, ratio=ratio, mask_id=encoder.mask_id)
    sequences.append(jax.vmap(mask)(keys[:, 3], prefixes))
  users, *others = encoding(
    params, jnp.stack(sequences), keys[:, 1 : 1 + len(sequences)].T
  )
  prompt = params['head']['window_prompt'][window_bucket(windows)]
  predicted = predict_items(
    params,
    batch,
    users + prompt,
    windows,
    repeats=True,
    axis_name=axis_name,
  )
  if not regularizer:
    return predicted
  real = batch['where'] & jnp.any(prefixes != 0, axis=1)
  regularization = _regularizer(
    params['head']['predictor'],
    users,
    *others,
    where=real,
    axis_name=axis_name,
  )
  parts = {'distribution': predicted, 'regularizer': regularization}
  return weighted_sum(parts, {'regularizer': regularizer})


def _regularizer(
  predictor: Float[Array, 'dim dim'],
  first: Float[Array, 'users dim'],
  second: Float[Array, 'users dim'],
  *,
  where: Bool[Array, ' users'],
  axis_name: str | None,
) -> LossAndMetrics:
  """The SimSiam loss: 1 - cosine of a predicted vector and the other one."""
  distances = [
    1
    - jnp.sum(
      unit_length(mine @ predictor) * lax.stop_gradient(unit_length(other)),
      axis=1,
    )
    for mine, other in ((first, second), (second, first))
  ]
  losses = (distances[0] + distances[1]) / 2
  return mean_loss(losses, where, axis_name=axis_name)


def init_msdp(encoder: UserEncoder, *, max_window: int) -> dict[str, Array]:
  """Initialises the parameters that MSDP adds to the head of `pooled_items`.

  Returns:
    `window_prompt`, zeros [buckets, vector_dim], and `predictor`, the identity
    [vector_dim, vector_dim].
  """
  dim = encoder.vector_dim
  return {
    'window_prompt': jnp.zeros((num_buckets(max_window), dim)),
    'predictor': jnp.eye(dim),
  }
