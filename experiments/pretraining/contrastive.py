"""The published methods that contrast users, by name.

Each names its source, and what had to be assumed. All are used as objectives of
pre-training alone: what some of them add to next-item prediction is left out.
"""

import functools

from adaptssr_jax import augment, losses
from adaptssr_jax.objectives.contrast import (
  contrast_views,
  encode_curriculum,
  query_overlap,
)
from adaptssr_jax.objectives.coserec import informed_edits
from adaptssr_jax.objectives.duorec import duorec_objective
from adaptssr_jax.objectives.fill import encode_filled
from adaptssr_jax.objectives.views import ViewsLoss, no_augmentation
from adaptssr_jax.training.devices import AXIS
from adaptssr_jax.training.step import LossFn
from experiments.flags.binder import SettingsError
from experiments.flags.objectives import (
  ObjectiveSettings,
  augmentations_of,
  mask_ratio_of,
  temperature_of,
)
from experiments.flags.traits import EDITS
from experiments.pretraining.context import (
  BLOCK,
  Context,
  check_dropout,
  encoding_of_views,
  loss_of_views,
  make_augmentations,
  view_augmentations,
)
from experiments.run.batches import steps_of_run


def make_clue(context: Context) -> LossFn:
  """CLUE: two dropout passes of what a user did, unedited, by NT-Xent.

  Reference:
    Cheng et al., "Learning Transferable User Representations with Sequential
    Behaviors via Contrastive Pre-training" (CLUE), ICDM 2021. Neither its text
    nor its code was found: this is what it is described as by those who compare
    with it, views by dropout alone. Assumed are the cosine, the temperature of
    0.1, the other users of the batch as negatives, and no projection head.
  """
  check_dropout(context, 'clue')
  loss = _nt_xent(context.settings, 'clue')
  encode = encoding_of_views(context, (no_augmentation,), passes=2)
  return loss_of_views(encode, clue=loss)


def make_cl4srec(context: Context) -> LossFn:
  """CL4SRec: two of crop, mask and reorder, never the same, by NT-Xent.

  Reference:
    Xie et al., "Contrastive Learning for Sequential Recommendation" (CL4SRec),
    ICDE 2022; products at temperature 1, as in the implementation that DuoRec
    published, which crops to 0.6, masks 0.3 and reorders 0.6 of a sequence.
    Here the ratios are those of the flags, the product is of user vectors in
    place of last states, and next-item prediction is not learned beside it.
  """
  edits = make_augmentations(context.settings, context.encoder.mask_id)
  loss = _nt_xent(context.settings, 'cl4srec', similarity='dot')
  encode = encoding_of_views(
    context, augment.two_of(*(edits[name] for name in EDITS))
  )
  return loss_of_views(encode, cl4srec=loss)


def make_idicl(context: Context) -> LossFn:
  """IDICL: dropout passes of several interests, by NT-Xent.

  The interests are the parts of the vector, one for each query of the pooling.
  The cosine of whole vectors is divided by their number too, and the queries
  are kept orthogonal.

  Reference:
    Sun et al., "Interest-oriented Universal User Representation via Contrastive
    Learning", 2021, https://arxiv.org/abs/2109.08865, and ACM MM 2022. Its
    equations and code were not found. Assumed is what the published code of
    AdaptSSR still has for it: K queries, cosine pooling, the penalty of
    `query_overlap` at weight 1, and the division by K; and, as of CLUE, dropout
    passes as views and a temperature of 0.1.

  Raises:
    SettingsError: the encoder has but one query, or does not read them out, or
      has no dropout.
  """
  encoder = context.encoder
  if encoder.num_queries < 2 or 'pooled' not in encoder.readout:
    raise SettingsError(
      '--objective=idicl needs several interests: give --num_queries=4 or so, '
      'and no --readout=last, or start from a run that has them'
    )
  check_dropout(context, 'idicl')
  loss = _nt_xent(context.settings, 'idicl', times=encoder.num_queries)
  encode = encoding_of_views(context, (no_augmentation,), passes=2)
  return loss_of_views(encode, idicl=loss, query_overlap=query_overlap)


def make_ccl(context: Context) -> LossFn:
  """CCL: NT-Xent of augmented views, from weak augmentations to strong ones.

  Mask and reorder edit a share of the behaviours that grows from a twentieth of
  their ratio to all of it, in 20 levels over `--curriculum_steps`; crop cuts
  off such a share. `--augmentations` names what is drawn for each view.

  Reference:
    Bian et al., "Contrastive Curriculum Learning for Sequential User Behavior
    Modeling via Data Augmentation" (CCL), CIKM 2021: the schedule and the
    cosine at temperature 1 of its published code, which has neither the
    generator of the paper, that fills masked places, nor its learned judge of
    difficulty. There the ratios end at 0.3, crop grows easier, being the share
    that is kept, the first view alone is the anchor, and a linear map follows
    the last state. Here crop grows harder, and both views are anchors.
  """
  settings = context.settings
  names = augmentations_of(settings, 'ccl')
  encode = functools.partial(
    encode_curriculum,
    augmentations_at=functools.partial(
      view_augmentations, settings, context.encoder, names, has_second=True
    ),
    num_steps=curriculum_steps(context),
    passes=1,
    encoding=context.encoding,
  )
  return loss_of_views(encode, ccl=_nt_xent(settings, 'ccl'))


def make_ccl_filled(context: Context) -> LossFn:
  """CCL as the paper has it: masked places are filled by a model of items.

  See `fill_masked`, for the model and what it does not see; the share that is
  masked grows as of `make_ccl`, up to `--mask_ratio`, here 0.3 unless given.
  """
  encode = functools.partial(
    encode_filled,
    ratio=mask_ratio_of(context.settings, 'ccl_filled'),
    num_steps=curriculum_steps(context),
    encoding=context.encoding,
  )
  loss = _nt_xent(context.settings, 'ccl_filled')
  return loss_of_views(encode, ccl_filled=loss)


def curriculum_steps(context: Context) -> int:
  """After how many updates augmentations have their full strength."""
  settings = context.settings
  if settings.curriculum_steps:
    return settings.curriculum_steps
  return steps_of_run(settings, context.users)


def make_coles(context: Context) -> LossFn:
  """CoLES: slices of a user are near, the hardest of other users' are far.

  Reference:
    Babaev et al., "CoLES: Contrastive Learning for Event Sequences with
    Self-Supervision", SIGMOD 2022, with the margin of 0.5 and the 5 hardest
    negatives of its published code. The paper has 5 slices of a user
    (`--num_slices`) and a recurrent encoder; here the loss is the mean over
    users, and not their sum.
  """
  loss = functools.partial(
    contrast_views, loss=losses.coles_loss, axis_name=AXIS
  )
  slices = view_augmentations(
    context.settings, context.encoder, ('slice',), has_second=False
  )
  return loss_of_views(encoding_of_views(context, slices), coles=loss)


def make_coserec(context: Context) -> LossFn:
  """CoSeRec: views into which similar items are put, by NT-Xent.

  The batch has the similar items of each behaviour, too, where the table is
  split or updated by rows, so that their rows are there.

  Reference:
    Liu et al., "Contrastive Self-supervised Sequential Recommendation with
    Robust Augmentation" (CoSeRec), 2021. There it is added to predicting the
    next item, on the outputs of all positions side by side; here it is the
    whole loss, of user vectors. The second similarity of items, by their
    embeddings after a warm-up, is left out. The published ratios of crop, mask
    and reorder are 0.2, 0.7 and 0.2; here they are those of the flags.
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
  loss = _nt_xent(settings, 'coserec', similarity='dot')
  return loss_of_views(encoding_of_views(context, (edits, edits)), coserec=loss)


def make_duorec(context: Context) -> LossFn:
  """DuoRec: users who go on to the same item, by NT-Xent."""
  return functools.partial(
    duorec_objective,
    # The two sequences may be the same, and differ by dropout alone.
    encoding=context.with_dropout,
    temperature=temperature_of(context.settings, 'duorec'),
    block_size=BLOCK,
  )


def _nt_xent(
  settings: ObjectiveSettings,
  name: str,
  *,
  similarity: str = 'cosine',
  times: float = 1.0,
) -> ViewsLoss:
  """NT-Xent at so many times the temperature of the flags."""
  return functools.partial(
    contrast_views,
    temperature=times * temperature_of(settings, name),
    similarity=similarity,
    block_size=BLOCK,
    axis_name=AXIS,
  )
