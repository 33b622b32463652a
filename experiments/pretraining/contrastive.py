"""The published methods that contrast users.

Each docstring names the source and our assumptions. Methods that were published
as an addition to next-item prediction are used without it, for pre-training.
"""

import functools

from adaptssr_jax import augment, losses
from adaptssr_jax.objectives.contrast import (
  contrast_views,
  encode_curriculum,
  query_overlap,
)
from adaptssr_jax.objectives.coserec import coserec_edits
from adaptssr_jax.objectives.duorec import duorec_objective
from adaptssr_jax.objectives.fill import encode_filled
from adaptssr_jax.objectives.views import ViewsLoss
from adaptssr_jax.training.devices import AXIS
from adaptssr_jax.training.step import LossFn
from experiments.flags.binder import SettingsError
from experiments.flags.objectives import traits_of
from experiments.pretraining.context import (
  BLOCK,
  Context,
  check_dropout,
  encoding_of_views,
  loss_of_views,
  make_augmentations,
  view_augmentations,
)


def make_clue(context: Context) -> LossFn:
  """CLUE: NT-Xent of two dropout passes of the unedited behaviours.

  Reference:
    Cheng et al., "Learning Transferable User Representations with Sequential
    Behaviors via Contrastive Pre-training" (CLUE), ICDM 2021. We found neither
    its text nor its code, and follow papers that compare with it: views differ
    by dropout alone. We assume the cosine, a temperature of 0.1, the other
    users of the batch as negatives, and no projection head.
  """
  check_dropout(context, 'clue')
  encode = encoding_of_views(context, 'clue')
  return loss_of_views(encode, clue=_nt_xent(context, 'clue'))


def make_cl4srec(context: Context) -> LossFn:
  """CL4SRec: NT-Xent of two views with different edits of crop, mask, reorder.

  Reference:
    Xie et al., "Contrastive Learning for Sequential Recommendation" (CL4SRec),
    ICDE 2022. We use dot products at temperature 1, as in the implementation
    that DuoRec published, which crops to 0.6, masks 0.3 and reorders 0.6 of a
    sequence. Here the ratios are those of the flags, the products are of user
    vectors instead of last states, and next-item prediction is left out.
  """
  edits = make_augmentations(context.settings, context.encoder.mask_id)
  loss = _nt_xent(context, 'cl4srec', similarity='dot')
  two = augment.two_of(*edits.values())
  encode = encoding_of_views(context, 'cl4srec', two)
  return loss_of_views(encode, cl4srec=loss)


def make_idicl(context: Context) -> LossFn:
  """IDICL: NT-Xent of dropout passes of several interests.

  The interests are the parts of the user vector, one for each query of the
  pooling. The cosine of user vectors is also divided by the number of
  interests, and a penalty keeps the queries orthogonal.

  Reference:
    Sun et al., "Interest-oriented Universal User Representation via Contrastive
    Learning", 2021, https://arxiv.org/abs/2109.08865, and ACM MM 2022. We did
    not find its equations or code. We assume what the published code of
    AdaptSSR contains for it (K queries, cosine pooling, the penalty of
    `query_overlap` at weight 1, and the division by K) and, as for CLUE,
    dropout passes as views and a temperature of 0.1.

  Raises:
    SettingsError: If the encoder has fewer than two queries, does not use them
      for its user vectors, or has no dropout.
  """
  encoder = context.encoder
  if encoder.num_queries < 2 or 'pooled' not in encoder.readout:
    raise SettingsError(
      '--objective=idicl needs several interests: give --num_queries=4 or so, '
      'and no --readout=last, or start from a run that has them'
    )
  check_dropout(context, 'idicl')
  loss = _nt_xent(context, 'idicl', times=encoder.num_queries)
  encode = encoding_of_views(context, 'idicl')
  return loss_of_views(encode, idicl=loss, query_overlap=query_overlap)


def make_ccl(context: Context) -> LossFn:
  """CCL: NT-Xent of augmented views; the augmentations grow stronger.

  Mask and reorder edit a share of the behaviours that grows from a twentieth of
  their ratio to the full ratio, in 20 levels over `--curriculum_steps`; the
  share that crop cuts off grows in the same way. `--augmentations` names what
  is drawn for each view.

  Reference:
    Bian et al., "Contrastive Curriculum Learning for Sequential User Behavior
    Modeling via Data Augmentation" (CCL), CIKM 2021. The schedule and the
    cosine at temperature 1 are those of its published code, which has neither
    the paper's generator that fills masked positions nor its learned measure of
    difficulty. In that code the ratios end at 0.3; crop grows easier, since its
    ratio is the share that is kept; only the first view is an anchor; and a
    linear map follows the last state. Here crop grows harder, and both views
    are anchors.
  """
  settings = context.settings
  encode = functools.partial(
    encode_curriculum,
    augmentations_at=functools.partial(view_augmentations, context, 'ccl'),
    num_steps=settings.curriculum_steps or context.num_steps,
    passes=1,
    encoding=context.encoding,
  )
  return loss_of_views(encode, ccl=_nt_xent(context, 'ccl'))


def make_ccl_filled(context: Context) -> LossFn:
  """CCL as in the paper: a model of items fills the masked positions.

  For the model, and what differs from the paper, see `fill_masked`. The share
  that is masked grows as in `make_ccl`, up to `--mask_ratio` (default 0.3).
  """
  settings = context.settings
  encode = functools.partial(
    encode_filled,
    ratio=traits_of(settings, 'ccl_filled').mask_ratio,
    num_steps=settings.curriculum_steps or context.num_steps,
    encoding=context.encoding,
  )
  loss = _nt_xent(context, 'ccl_filled')
  return loss_of_views(encode, ccl_filled=loss)


def make_coles(context: Context) -> LossFn:
  """CoLES: attracts slices of a user, repels the hardest slices of others.

  Reference:
    Babaev et al., "CoLES: Contrastive Learning for Event Sequences with
    Self-Supervision", SIGMOD 2022, with the margin of 0.5 and the 5 hardest
    negatives of its published code. The paper uses 5 slices per user
    (`--num_slices`) and a recurrent encoder. Here the loss is the mean over
    users, not their sum.
  """
  loss = functools.partial(
    contrast_views, loss=losses.coles_loss, axis_name=AXIS
  )
  return loss_of_views(encoding_of_views(context, 'coles'), coles=loss)


def make_coserec(context: Context) -> LossFn:
  """CoSeRec: NT-Xent of two views, edited by operators that know similar items.

  If the table is sharded or updated by rows, the batch also holds the similar
  items of each behaviour, so that their rows are available.

  Reference:
    Liu et al., "Contrastive Self-supervised Sequential Recommendation with
    Robust Augmentation" (CoSeRec), 2021. The paper adds it to next-item
    prediction, and compares the concatenated outputs of all positions; here it
    is the only loss, and compares user vectors. The paper's second similarity
    of items, by their embeddings after a warm-up, is left out. The published
    ratios of crop, mask and reorder are 0.2, 0.7 and 0.2; here they are those
    of the flags.
  """
  settings = context.settings
  edits = coserec_edits(
    # A NumPy array, so that --plan can trace the step.
    similar=context.users.similar_items,
    mask_id=context.encoder.mask_id,
    substitute_ratio=settings.substitute_ratio,
    insert_ratio=settings.insert_ratio,
    crop_ratio=settings.crop_ratio,
    mask_ratio=traits_of(settings, 'coserec').mask_ratio,
    reorder_ratio=settings.reorder_ratio,
  )
  loss = _nt_xent(context, 'coserec', similarity='dot')
  encode = encoding_of_views(context, 'coserec', (edits, edits))
  return loss_of_views(encode, coserec=loss)


def make_duorec(context: Context) -> LossFn:
  """DuoRec: NT-Xent of users whose next item is the same."""
  return functools.partial(
    duorec_objective,
    # A user without a partner has two views that differ by dropout alone.
    encoding=context.with_dropout,
    temperature=traits_of(context.settings, 'duorec').temperature,
    block_size=BLOCK,
  )


def _nt_xent(
  context: Context,
  name: str,
  *,
  similarity: str = 'cosine',
  times: float = 1.0,
) -> ViewsLoss:
  """NT-Xent at `times` the temperature of the flags."""
  return functools.partial(
    contrast_views,
    temperature=times * traits_of(context.settings, name).temperature,
    similarity=similarity,
    block_size=BLOCK,
    axis_name=AXIS,
  )
