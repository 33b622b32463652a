"""The AdaptSSR loss of a batch of sequences, trained by tests of steps."""

import functools

from adaptssr_jax.objectives.adaptssr import rank_views
from adaptssr_jax.objectives.views import encode_views, views_objective
from adaptssr_jax.ops.buckets import AT_ONCE


def adaptssr_objective(
  params,
  batch,
  key,
  *,
  encoder,
  augmentations,
  buckets=AT_ONCE,
  axis_name=None,
  **settings,
):
  rank = functools.partial(rank_views, axis_name=axis_name, **settings)
  encode = functools.partial(
    encode_views,
    encoder=encoder,
    augmentations=augmentations,
    buckets=buckets,
  )
  return views_objective(
    params, batch, key, losses={'adaptssr': rank}, encode=encode
  )
