"""The AdaptSSR loss of a batch of sequences, trained by tests of steps."""

import functools

from adaptssr_jax.objectives.adaptssr import rank_views
from adaptssr_jax.objectives.views import encode_views, views_objective


def adaptssr_objective(
  params,
  batch,
  key,
  *,
  encoding,
  augmentations,
  **settings,
):
  rank = functools.partial(rank_views, axis_name=encoding.axis_name, **settings)
  encode = functools.partial(
    encode_views, encoding=encoding, augmentations=augmentations
  )
  return views_objective(
    params, batch, key, losses={'adaptssr': rank}, encode=encode
  )
