"""ECL: the user vector helps to detect which behaviours were replaced."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, UInt32

from adaptssr_jax import losses
from adaptssr_jax.encoder.dropout import row_seeds
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.encoder.transfer import mean_projection
from adaptssr_jax.objectives.fill import fill_masked
from adaptssr_jax.objectives.masked_items import predict_masked
from adaptssr_jax.objectives.users import (
  Encoding,
  LossAndMetrics,
  as_sums,
  mean_loss,
  user_keys,
)
from adaptssr_jax.objectives.views import weighted_sum
from adaptssr_jax.ops.buckets import in_buckets
from adaptssr_jax.table.lookup import look_up


def ecl_objective(
  params: dict[str, Any],
  batch: dict[str, Array],
  key: Key[Array, ''],
  *,
  encoding: Encoding,
  ratio: float = 0.2,
  contrast: float = 0.005,
  discriminator: float = 0.25,
  temperature: float = 0.05,
  block_size: int | None = None,
) -> LossAndMetrics:
  """The ECL-SR loss: masked items, a contrast and a discriminator.

  masked items + contrast * NT-Xent(u, u+) + discriminator * mean over all t of
  the binary cross entropy of "x'_t is not x_t", given u

  Here u and u+ are the vectors of a user under two dropout masks, also in
  validation, and x' is the sequence in which masked items are replaced by draws
  from the softmax that predicts them, see `fill_masked`. The discriminator is a
  second, bidirectional Transformer of the size of the encoder, which shares the
  item table. A linear map of u is added to each of its inputs, so that its loss
  trains the encoder through u.

  The published code differs. It adds next-item prediction with weight 1; the
  defaults here are its weights for MovieLens-1M (0.2 masked items, 0.001
  contrast, 0.05 discriminator) divided by that of masked items. Its generator
  is a separate Transformer and replaces by the most likely item; here the
  encoder is the generator, and items are drawn. Its contrast has one direction,
  uses the mean of the last states, and takes only the second passes of other
  users as negatives. For MovieLens-1M its discriminator is the encoder itself
  and reads states position by position.

  Args:
    params: with `head` of `masked_items.init_masked_items` and
      `init_discriminator`.
    batch: if it has `sampled` ids, replacements are drawn from these only.
    encoding: encodes users, and the masked sequences. If it is deterministic,
      u and u+ have dropout nevertheless.
    ratio: share of the behaviours that is masked.
    contrast: weight of the NT-Xent loss.
    discriminator: weight of the loss of the discriminator.
    temperature: temperature of NT-Xent.
    block_size: number of users compared at a time, see `losses.nt_xent_loss`.

  Returns:
    The weighted sum, and the metrics `loss`, `generator_loss`, `contrast_loss`,
    `discriminator_loss`, `discriminator_accuracy` and, if the softmax is exact,
    `accuracy` of the predictions of masked items.

  Raises:
    ValueError: If rows of the table are missing and no ids are sampled.

  Reference:
    Zhou et al., Equivariant Contrastive Learning for Sequential Recommendation,
    RecSys 2023 (https://arxiv.org/abs/2211.05290).
  """
  items, where = batch['items'], batch['where']
  axis_name = encoding.axis_name
  keys = user_keys(key, batch['example_id'], num=4)
  filled, masked = fill_masked(
    params,
    items,
    keys[:, 0],
    encoding=encoding,
    ratio=ratio,
    sampled=batch.get('sampled'),
  )
  with_dropout = dataclasses.replace(encoding, deterministic=False)
  users = with_dropout(params, jnp.stack([items, items]), keys[:, 1:3].T)
  loss = losses.nt_xent_loss(
    users,
    temperature=temperature,
    block_size=block_size,
    axis_name=axis_name,
    where=where,
  )
  logits = replaced_logits(
    params, filled, users[0], keys[:, 3], encoding=encoding
  )
  real = (items != 0) & where[:, None]
  is_replaced = filled != items
  errors = optax.sigmoid_binary_cross_entropy(logits, is_replaced)
  right = {'discriminator_accuracy': (logits > 0) == is_replaced}
  parts = {
    'generator': predict_masked(params, batch, masked, axis_name=axis_name),
    'contrast': (loss, as_sums(loss, where)),
    'discriminator': mean_loss(errors, real, right, axis_name=axis_name),
  }
  weights = {'contrast': contrast, 'discriminator': discriminator}
  return weighted_sum(parts, weights)


def replaced_logits(
  params: dict[str, Any],
  items: Int[Array, 'users length'],
  users: Float[Array, 'users dim'],
  keys: Key[Array, ' users'],
  *,
  encoding: Encoding,
) -> Float[Array, 'users length']:
  """The discriminator's logits that each item was replaced.

  Args:
    params: `table`, and the `head` of `init_discriminator`.
    items: sequences with replaced items.
    users: vectors of the users before the replacement.
    keys: dropout keys, one per user.
    encoding: its encoder has the size of the discriminator.

  Returns:
    Logits, [users, length], meaningless at padding.
  """
  head, length = params['head']['discriminator'], items.shape[1]
  discriminator, seeds = discriminator_of(encoding.encoder), None
  if not encoding.deterministic:
    seeds = row_seeds(keys, draws=discriminator.num_dropouts)

  def logits_of(
    items: Int[Array, 'users width'],
    embedded: Float[Array, 'users width dim'],
    users: Float[Array, 'users features'],
    seeds: UInt32[Array, 'users draws 2'] | None,
  ) -> Float[Array, 'users length']:
    states = discriminator.apply(
      {'params': head['encoder']},
      items,
      deterministic=seeds is None,
      seeds=seeds,
      embedded=embedded + (users @ head['condition'])[:, None],
      method='hidden_states',
    )
    logits = states.astype(jnp.float32) @ head['kernel'] + head['bias']
    return jnp.pad(logits, ((0, 0), (0, length - items.shape[1])))

  return in_buckets(
    logits_of,
    items,
    users,
    seeds,
    buckets=encoding.buckets,
    look_up=functools.partial(look_up, params['table']),
  )


def discriminator_of(encoder: UserEncoder) -> UserEncoder:
  """The Transformer of the discriminator, which has no item table."""
  return encoder.clone(num_items=1, causal=False)


def init_discriminator(
  encoder: UserEncoder, key: Key[Array, '']
) -> dict[str, Any]:
  """Initialises the parameters of a discriminator of the encoder's size.

  Returns:
    `discriminator`, with: `encoder`, its Transformer; `condition`, a matrix
    [vector_dim, embed_dim] that starts as `transfer.mean_projection`; and
    `kernel` and `bias`, zeros, which map a state to a logit.
  """
  dim = encoder.embed_dim
  init = functools.partial(
    discriminator_of(encoder).init, method='hidden_states'
  )
  # Compiled, since op by op it takes seconds.
  params = dict(jax.jit(init)(key, jnp.ones((1, 1), jnp.int32))['params'])
  # Items are looked up in the table of the model.
  del params['item_embedding']
  return {
    'discriminator': {
      'encoder': params,
      'condition': mean_projection(encoder.vector_dim, dim),
      'kernel': jnp.zeros(dim),
      'bias': jnp.zeros(()),
    }
  }
