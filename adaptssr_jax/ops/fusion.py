"""Lambda: the weight by which AdaptSSR fuses its two rankings."""

import itertools

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from adaptssr_jax.ops.reductions import AxisName, reduce_losses
from adaptssr_jax.ops.similarity import cosines, exact_dot, unit_users


def augmentation_weight(
  users: Float[ArrayLike, 'views 2 batch dim'],
  *,
  fusion: str | ArrayLike,
  where: Bool[ArrayLike, ' batch'] | None = None,
  axis_name: AxisName | None = None,
) -> Float[Array, '...']:
  """Lambda: how far the explicit views of a user have drifted apart.

  'adaptive' is one lambda per user, over all pairs of passes of two different
  views, four if there are two views; 'batch_mean' is one number for the batch,
  over the pairs of `users[0, 0]` and a pass of another view:

      adaptive    lambda_i = 1 - mean over pairs of max(cosine, 0)
      batch_mean  lambda   = 1 - mean over users and pairs of cosine

  Args:
    users: `[views, 2, batch, dim]` = (explicit view, dropout pass, user,
      feature), of any scale.
    fusion: 'adaptive', 'batch_mean', or a number, which is returned.
    where: Bool `[batch]`, the users in 'batch_mean'.
    axis_name: The axis over whose devices 'batch_mean' is taken.

  Returns:
    `[batch]` for 'adaptive', else a scalar. It carries no gradient.

  Raises:
    ValueError: If `users` is not `[views, 2, batch, dim]`, or `fusion` is
      unknown.

  Example:
    >>> view = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> users = jnp.stack([jnp.stack([view, view]), jnp.stack([view, -view])])
    >>> augmentation_weight(users, fusion='adaptive')
    Array([0.5, 0.5], dtype=float32)

  Reference:
    Yu et al., "AdaptSSR: Pre-training User Model with Augmentation-Adaptive
    Self-Supervised Ranking", NeurIPS 2023: 'adaptive' is the paper's
    coefficient, 'batch_mean' that of the authors' published code.
  """
  users = lax.stop_gradient(unit_users(users, where))
  if isinstance(fusion, str):
    if fusion == 'adaptive':
      pairs = [
        exact_dot('pbd,qbd->bpq', first, second)
        for first, second in itertools.combinations(users, 2)
      ]
      return 1 - jnp.mean(jnp.maximum(jnp.stack(pairs), 0), axis=(0, 2, 3))
    if fusion == 'batch_mean':
      others = users[1:].reshape(-1, *users.shape[2:])
      means = jnp.mean(cosines(users[0, 0], others), axis=-1)
      return 1 - reduce_losses(means, where, jnp.mean, axis_name)
  elif jnp.isscalar(fusion) and not _outside_unit(fusion):
    return lax.stop_gradient(jnp.asarray(fusion, users.dtype))
  raise ValueError(
    "fusion must be 'adaptive', 'batch_mean' or a number in [0, 1], not "
    f'{fusion!r}.'
  )


def _outside_unit(fusion: ArrayLike) -> bool:
  # Of a traced number nothing is known yet.
  return not isinstance(fusion, jax.core.Tracer) and not 0 <= fusion <= 1
