"""Objectives that need more than the user's own sequence."""

import functools

from adaptssr_jax.data import UserData
from adaptssr_jax.data.prepared.partners import by_last_item
from adaptssr_jax.objectives.coserec import coserec_objective, informed_edits
from adaptssr_jax.objectives.duorec import duorec_objective
from adaptssr_jax.training.devices import AXIS
from adaptssr_jax.training.step import LossFn
from experiments.flags.objectives import (
  ObjectiveSettings,
  mask_ratio_of,
  temperature_of,
)
from experiments.flags.traits import traits_of
from experiments.pretraining.context import BLOCK, Context, on_window


def with_relations(
  settings: ObjectiveSettings, data: UserData, *, num_items: int
) -> UserData:
  """The data, with what relates users and items, if the objective needs it.

  Args:
    settings: the flags.
    data: splits `train` and `validation`. Partners are of the same split, and
      items are alike in the histories of `train`.
    num_items: of the catalogue.
  """
  traits = [traits_of(name) for name in settings.objective]
  more = {}
  if any(of.sees_similar for of in traits):
    # SciPy's, which few runs need, take a tenth of a second to import.
    from adaptssr_jax.data.similar_items import similar_items

    more['similar_items'] = similar_items(
      data.splits['train'].items, num_items=num_items, k=settings.num_similar
    )
  splits = {}
  for name, users in data.splits.items():
    if any(of.sees_partners for of in traits):
      more['by_last_item'] = by_last_item(users.items)
    splits[name] = users._replace(**more)
  return data._replace(splits=splits)


def make_coserec(context: Context) -> LossFn:
  """CoSeRec: views into which similar items are put, by NT-Xent.

  See `coserec_objective` for its source. The published ratios of crop, mask and
  reorder are 0.2, 0.7 and 0.2; here they are those of the flags.
  """
  settings = context.settings
  edits = informed_edits(
    # Of NumPy: --plan asks for shapes alone.
    similar=context.users.similar_items,
    mask_id=context.encoder.mask_id,
    substitute_ratio=settings.substitute_ratio,
    insert_ratio=settings.insert_ratio,
    crop_ratio=settings.crop_ratio,
    mask_ratio=mask_ratio_of(settings, 'coserec'),
    reorder_ratio=settings.reorder_ratio,
  )
  objective = functools.partial(
    coserec_objective,
    augmentations=(edits, edits),
    temperature=temperature_of(settings, 'coserec'),
    block_size=BLOCK,
    **context.encoding,
  )
  return on_window(context, objective)


def make_duorec(context: Context) -> LossFn:
  """DuoRec: users who go on to the same item, by NT-Xent."""
  return functools.partial(
    duorec_objective,
    encoder=context.encoder,
    temperature=temperature_of(context.settings, 'duorec'),
    block_size=BLOCK,
    buckets=context.buckets,
    axis_name=AXIS,
  )
