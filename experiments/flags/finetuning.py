"""The flags of fine-tuning, and what they are where the task decides."""

import dataclasses

from experiments.flags.binder import SettingsError, flag
from experiments.flags.shared import (
  EncoderSettings,
  PlanSettings,
  concatenate_flag,
  train_users_flag,
)

# Of rankings: the places that count.
CUTOFFS = (5, 10, 20)
# The validation metrics that may choose an epoch, by the kind of task; the
# first one does, and by it methods are compared.
SELECT_BY = {
  'classification': ('accuracy', 'macro_f1', 'auc'),
  'conversion': ('auc', 'log_loss'),
  'ranking': (
    'ndcg@10',
    *(f'{name}@{k}' for name in ('hit_rate', 'mrr') for k in CUTOFFS),
    'ndcg@5',
    'ndcg@20',
  ),
}
# What may read frozen vectors.
MODELS = ('logistic', 'lightgbm')
_ALL_MODES = ('full', 'frozen', 'probe', 'zero_shot')
_TRAINED = ('full', 'frozen')
_LABELLED = ('classification', 'conversion')
# Flags that have an effect only in some modes, or for some kinds of task.
_ONLY_FOR = {
  'concatenate': (('probe',), SELECT_BY),
  'with_bag': (('probe',), _LABELLED),
  'probe_model': (('probe',), _LABELLED),
  'head': (_TRAINED, _LABELLED),
  'ranking_loss': (_TRAINED, ('ranking',)),
  'tied_targets': ((*_TRAINED, 'zero_shot'), ('ranking',)),
  'encoder_learning_rate': (('full',), SELECT_BY),
  'layer_decay': (('full',), SELECT_BY),
  'head_epochs': (('full',), SELECT_BY),
  'positive_weight': (_ALL_MODES, ('conversion',)),
}
_LEARNING_RATES = {'life_status': 1e-4, 'click': 5e-4, 'thumb_up': 5e-4}
_BATCH_SIZES = {'click': 512}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneSettings(PlanSettings, EncoderSettings):
  """The flags of fine-tuning."""

  task: str = flag(
    'gender',
    'The task: gender, age, click, ...; of user_tables the label column.',
  )
  kind: str | None = flag(
    None,
    'What the labels are, if not what the data set says: conversion takes the '
    'second of two classes for a rare event.',
    choices=_LABELLED,
  )
  pretrained: str = flag(
    '', 'Workdir of the run whose encoder to start from; else at random.'
  )
  concatenate: tuple[str, ...] = concatenate_flag()
  mode: str = flag(
    'full',
    'What is trained: encoder and head, the head on a frozen encoder, a '
    'regression on its vectors (probe: logistic, or ridge for rankings), or '
    'nothing: zero_shot ranks items as they were learned in pre-training.',
    choices=_ALL_MODES,
  )
  ranking_loss: str = flag(
    'bpr',
    'Rankings: each positive against one sampled negative (bpr), or against '
    'all of them (softmax).',
    choices=('bpr', 'softmax'),
  )
  tied_targets: bool | None = flag(
    None,
    'Rankings: a target that is an item is scored by its row in the item table '
    '[of zero_shot true, else false].',
  )
  probe_model: str = flag(
    'logistic',
    '--mode=probe of labels: a logistic regression, or the boosted trees of '
    'LightGBM.',
    choices=MODELS,
  )
  with_bag: bool = flag(
    False,
    '--mode=probe of labels: reads the items of the whole history too, '
    'weighted by TF-IDF, beside the vector.',
  )
  head: str = flag(
    'mlp',
    'The head on the user vectors: mlp, with a hidden layer; linear; or probe, '
    'a linear layer that starts as the logistic regression of --mode=probe, so '
    'that the best epoch is at least as good as the probe on validation rows.',
    choices=('mlp', 'linear', 'probe'),
  )
  encoder_learning_rate: float | None = flag(
    None, 'Learning rate of the encoder [--learning_rate].', above=0.0
  )
  layer_decay: float = flag(
    1.0,
    'The learning rate of each encoder layer is this factor times that of the '
    'layer above it, from the pooling down to the embeddings.',
    above=0.0,
    high=1.0,
  )
  head_epochs: int = flag(
    0, 'Epochs at first in which the head alone is trained.', low=0
  )
  num_epochs: int = flag(5, 'Passes over the users.', low=1)
  batch_size: int | None = flag(
    None,
    'Users of a batch, over all devices; in a ranking, each with all of their '
    'positives [click 512, else 128].',
    low=1,
  )
  learning_rate: float | None = flag(
    None,
    'Learning rate of Adam [click and thumb_up 5e-4, life_status 1e-4, else '
    '2e-4].',
    above=0.0,
  )
  dropout_rate: float | None = flag(
    None,
    'Share dropped everywhere in the encoder [0.5; of a frozen one 0].',
    low=0.0,
    high=0.99,
  )
  positive_weight: float = flag(
    1.0,
    'conversion: weight in the loss of users with the event; unless it is 1, '
    'scores are not log-odds.',
    above=0.0,
  )
  split_seed: int = flag(
    0,
    'Seed of a new random split of the labelled rows, 60/20/20; 0: the stored '
    'split.',
    low=0,
    high=2**32 - 1,
  )
  train_users: int = train_users_flag()
  select_by: str | None = flag(
    None,
    'The validation metric by which the best epoch is chosen [classification '
    'accuracy, conversion auc, ranking ndcg@10].',
  )

  def mutable_names(self) -> set[str]:
    """Not the length: a run that was tested is not trained any further."""
    length = {'num_epochs', 'num_steps', 'patience'}
    return super().mutable_names() - length


def with_defaults(settings: FinetuneSettings) -> FinetuneSettings:
  """The settings with the flags that the task decides, unless given."""
  check_flags(settings)
  # A column of somebody's own table may have the name of another task.
  is_own = settings.dataset == 'user_tables'
  task = '' if is_own else settings.task.removesuffix('_by_user')
  defaults = {
    'batch_size': _BATCH_SIZES.get(task, 128),
    'learning_rate': _LEARNING_RATES.get(task, 2e-4),
    # It would blur vectors that cannot learn to be robust to it.
    'dropout_rate': 0.5 if settings.mode == 'full' else 0.0,
    # A head of its own would know nothing yet.
    'tied_targets': settings.mode == 'zero_shot',
  }
  missing = {
    name: value
    for name, value in defaults.items()
    if getattr(settings, name) is None
  }
  return dataclasses.replace(settings, **missing)


def check_flags(settings: FinetuneSettings, kind: str | None = None) -> None:
  """Refuses flags that have no effect in the mode, or for the kind of task.

  Args:
    kind: of the task; None while it is not known.
  """
  for name, (modes, kinds) in _ONLY_FOR.items():
    value = getattr(settings, name)
    if not value or value == getattr(FinetuneSettings, name):
      continue
    if settings.mode not in modes:
      raise SettingsError(
        f'--{name} is for --mode={" or ".join(modes)}, not {settings.mode}: '
        'leave out either'
      )
    if kind and kind not in kinds:
      raise SettingsError(
        f'--{name} is for {" or ".join(kinds)} tasks; {settings.task} is a '
        f'{kind} task: leave it out'
      )
  if settings.concatenate and not settings.pretrained:
    raise SettingsError(
      '--concatenate adds the vectors of more runs to those of --pretrained: '
      'give --pretrained=DIR too'
    )
  if not settings.num_steps and settings.head_epochs >= settings.num_epochs:
    raise SettingsError(
      f'--head_epochs={settings.head_epochs} leaves the encoder none of the '
      f'--num_epochs={settings.num_epochs}: take fewer, or --mode=frozen'
    )
