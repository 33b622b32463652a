"""The head of a ranking whose targets are tied to the item table."""

from typing import Any

import jax
import numpy as np

from adaptssr_jax.checkpoint.encoders import restore_description
from adaptssr_jax.data import UserData
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.encoder.tied_targets import (
  TiedTargets,
  biases_of_targets,
  items_of_targets,
)
from experiments.flags.binder import SettingsError
from experiments.flags.finetuning import FinetuneSettings
from experiments.flags.shared import LEAVE_ONE_OUT
from experiments.run.encoder import Source
from experiments.run.process import tell


def check_ranking(settings: FinetuneSettings, data: UserData) -> None:
  """Raises `SettingsError` where flags of rankings do not fit."""
  zero_shot = settings.mode == 'zero_shot'
  flags = {
    '--mode=zero_shot': zero_shot,
    '--tied_targets': settings.tied_targets,
    '--ranking_loss=softmax': settings.ranking_loss == 'softmax',
  }
  given = [name for name, is_given in flags.items() if is_given]
  if data.kind != 'ranking':
    if given:
      raise SettingsError(
        f'{given[0]} is for rankings; {settings.task} is a {data.kind} task: '
        'leave it out'
      )
    return
  if zero_shot and settings.tied_targets is False:
    raise SettingsError(
      '--mode=zero_shot ranks by the item table: leave out --tied_targets=false'
    )
  if settings.tied_targets and settings.shard_table:
    raise SettingsError(
      f'--shard_table does not go with {given[0]}, which scores targets by the '
      'whole item table: leave out either'
    )
  if zero_shot and not settings.pretrained:
    raise SettingsError(
      '--mode=zero_shot needs --pretrained=DIR, the workdir of a run that has '
      'learned to guess items: nothing else is trained'
    )
  if settings.pretrained:
    _refuse_known_targets(settings)


def _refuse_known_targets(settings: FinetuneSettings) -> None:
  """The last ten films are no test of who has seen eight of them."""
  flags = restore_description(settings.pretrained).flags
  if flags.get('split') == LEAVE_ONE_OUT != settings.split:
    raise SettingsError(
      f'--pretrained={settings.pretrained} was trained with '
      '--split=leave_one_out, so that it has seen films that '
      f'--task={settings.task} holds out: take a run without it, or '
      '--task=next_item'
    )
  if settings.split == LEAVE_ONE_OUT and flags.get('task', '') not in (
    '',
    settings.task,
  ):
    raise SettingsError(
      f'--pretrained={settings.pretrained} was fine-tuned on '
      f'--task={flags["task"]}, so that it may have seen films that '
      f'--task={settings.task} holds out: take a pre-training run'
    )


def make_tied_targets(
  settings: FinetuneSettings,
  data: UserData,
  encoder: UserEncoder,
  key: jax.Array,
  *,
  source: Source | None,
) -> tuple[TiedTargets, dict[str, Any]]:
  """The head and its parameters; prints how many targets are items."""
  items, targets = data.vocabulary
  head = TiedTargets(items_of_targets(targets, items))
  tell(
    f'{np.count_nonzero(head.items):,} of {len(targets):,} targets are items; '
    'the others have rows of their own'
  )
  learned = _pretrained_head(settings, targets, source)
  width = (encoder.vector_dim, encoder.embed_dim)
  if np.shape(learned.get('projection')) != width:
    # Learned for another --readout.
    learned.pop('projection', None)
  params = head.init(
    key,
    features=encoder.vector_dim,
    embed_dim=encoder.embed_dim,
    **learned,
  )
  return head, params


def _pretrained_head(
  settings: FinetuneSettings, targets: list[str], source: Source | None
) -> dict[str, np.ndarray]:
  """By what the pre-trained model scores targets, if it scores items."""
  if source is None:
    return {}
  head = source.params.get('head', {})
  learned = {
    name: np.asarray(head[name])
    for name in ('bias', 'projection')
    if name in head
  }
  flags = restore_description(settings.pretrained).flags
  trained = set(str(flags.get('objective', '')).split(','))
  # Masked items train no vector of a user.
  scores_users = trained & {'causal_items', 'pooled_items', 'next_items'}
  if settings.mode == 'zero_shot' and not scores_users:
    raise SettingsError(
      f'--mode=zero_shot: {settings.pretrained} has not learned to score items '
      'by the vector of a user; take a run of --objective=causal_items or '
      'pooled_items, or fine-tune it with --tied_targets'
    )
  if np.shape(learned.get('bias')) == (source.encoder.mask_id,):
    bias = biases_of_targets(learned['bias'], targets, source.known)
    return learned | {'bias': bias}
  return {}
