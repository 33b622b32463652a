"""Detects the two ways in which pre-training by AdaptSSR fails.

In the argument of the loss the similarity of the explicit view has the
coefficient 1 - 2 lambda. So explicit views with a cosine above 0.5 are pulled
together, and others are pushed apart. Therefore all users can collapse to one
point, or the views of a user can become as dissimilar as different users. The
value of the loss shows neither.
"""

import jax
import numpy as np

from adaptssr_jax import diagnostics

# A run that learns is far from all of these.
_LARGEST_MEAN_COSINE = 0.95
_LEAST_RANK = 3.0
_LEAST_MARGIN = 0.05

_SPREAD = {
  'mean_cosine': jax.jit(diagnostics.mean_cosine),
  'uniformity': jax.jit(diagnostics.uniformity),
  'effective_rank': jax.jit(diagnostics.effective_rank),
}
_LONGER = 'train longer, or with another --learning_rate'
_ADVICE = {
  ('adaptssr',): 'start from a run of --objective=pooled_items (--init_from), '
  'or lower --learning_rate'
}


def spread_of_users(users: np.ndarray) -> dict[str, float]:
  """How far the vectors [users, dim] of different users lie apart."""
  return {name: float(measure(users)) for name, measure in _SPREAD.items()}


def collapse_warning(
  values: dict[str, float],
  *,
  objective: tuple[str, ...],
  largest_rank: float = np.inf,
) -> str:
  """What is wrong with the user vectors, if these numbers show it.

  Args:
    values: of `spread_of_users`, and `explicit` and `other`, the mean
      similarity of a user's views and of strangers, where the objective has
      them.
    objective: what is trained, which decides the advice.
    largest_rank: the number of users, or of features if these are fewer: half
      of it is enough.

  Returns:
    A sentence that says what to try, or nothing.
  """
  advice = _ADVICE.get(objective, _LONGER)
  if values['mean_cosine'] > _LARGEST_MEAN_COSINE:
    return (
      'all users are encoded alike (mean cosine '
      f'{values["mean_cosine"]:.3f}): {advice}'
    )
  if values['effective_rank'] < min(_LEAST_RANK, largest_rank / 2):
    return (
      f'user vectors differ in {values["effective_rank"]:.1f} directions only: '
      f'{advice}'
    )
  margin = values.get('explicit', np.inf) - values.get('other', 0.0)
  if margin < _LEAST_MARGIN:
    return (
      'the views of a user are hardly more alike than strangers '
      f'({values["explicit"]:.3f} against {values["other"]:.3f}): {advice}'
    )
  return ''
