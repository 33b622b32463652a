"""The flags of fine-tuning, and defaults that depend on the task."""

import dataclasses
import itertools

from experiments.flags.binder import SettingsError, flag, unknown
from experiments.flags.process import UserVectorSettings
from experiments.flags.shared import (
  EncoderSettings,
  LabelSettings,
  PlanSettings,
)

# The cutoffs k of the metrics of rankings, such as NDCG@k.
CUTOFFS = (5, 10, 20)
# The validation metrics that can choose the best epoch, by the kind of task.
# The first one is the default, and methods are compared by it.
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
# The models of a probe.
MODELS = ('logistic', 'lightgbm')
_ALL_MODES = ('full', 'frozen', 'probe', 'zero_shot')
_TRAINED = ('full', 'frozen')
_LABELLED = ('classification', 'conversion')
# Flags that have an effect only in some modes, or for some kinds of task.
_ONLY_FOR = {
  'concatenate': (('probe',), SELECT_BY),
  'history': (('probe',), SELECT_BY),
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
# Flags that have no effect in a mode without training steps.
_OF_TRAINING = (
  *('num_epochs', 'num_steps', 'patience', 'window', 'learning_rate'),
  *('schedule', 'warmup_steps', 'weight_decay', 'dropout_rate'),
  *('table_update', 'max_skipped', 'checkpoint_every', 'keep_checkpoints'),
  *('log_every', 'log_seconds'),
)
# Flags that have no effect in a mode without training rows.
_OF_LABELS = ('train_users', 'select_by', 'log_to')
_LEARNING_RATES = {'life_status': 1e-4, 'click': 5e-4, 'thumb_up': 5e-4}
_BATCH_SIZES = {'click': 512}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneSettings(
  UserVectorSettings, PlanSettings, EncoderSettings, LabelSettings
):
  """The flags of fine-tuning."""

  task: str = flag(
    'gender',
    'The task: gender, age, click, ...; of user_tables the label column.',
  )
  kind: str | None = flag(
    None,
    'The kind of labels [that of the data set]; with conversion, the second of '
    'two classes is a rare event.',
    choices=_LABELLED,
  )
  pretrained: str = flag(
    '',
    'Workdir of the run from whose encoder to start; by default the encoder is '
    'random.',
  )
  mode: str = flag(
    'full',
    'What is trained. full: encoder and head; frozen: the head on a frozen '
    'encoder; probe: a regression on its vectors, logistic for labels, ridge '
    'for rankings; zero_shot: nothing, items are ranked by the pre-trained '
    'model.',
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
    'Rankings: score each target that is an item by its row in the item table '
    '[true for --mode=zero_shot, else false].',
  )
  probe_model: str = flag(
    'logistic',
    '--mode=probe, labels: fit a logistic regression, or boosted trees '
    '(lightgbm).',
    choices=MODELS,
  )
  with_bag: bool = flag(
    False,
    '--mode=probe, labels: join the TF-IDF bag of items in the whole history '
    'to the vector.',
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
    0, 'The number of first epochs that train only the head.', low=0
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
    'Dropout rate everywhere in the encoder [--mode=full 0.5, else 0].',
    low=0.0,
    high=0.99,
  )
  positive_weight: float = flag(
    1.0,
    'conversion: the weight of users with the event in the loss; unless it is '
    '1, scores are not log-odds.',
    above=0.0,
  )
  select_by: str | None = flag(
    None,
    'The validation metric by which the best epoch is chosen [classification '
    'accuracy, conversion auc, ranking ndcg@10].',
  )

  def without_effect(self) -> dict[str, str]:
    """The flags of training, in the modes that do not train."""
    names = {'probe': _OF_TRAINING, 'zero_shot': _OF_TRAINING + _OF_LABELS}
    why = f'has no effect with --mode={self.mode}'
    found = dict.fromkeys(names.get(self.mode, ()), why)
    return super().without_effect() | found

  def mutable_names(self) -> set[str]:
    """Without the length: a run that was tested is not trained further."""
    length = {'num_epochs', 'num_steps', 'patience'}
    return super().mutable_names() - length


def with_defaults(settings: FinetuneSettings) -> FinetuneSettings:
  """The settings, with defaults that depend on the task and the mode."""
  check_flags(settings)
  # A column of the user's own table may have the name of one of our tasks.
  is_own = settings.dataset == 'user_tables'
  task = '' if is_own else settings.task.removesuffix('_by_user')
  defaults = {
    'batch_size': _BATCH_SIZES.get(task, 128),
    'learning_rate': _LEARNING_RATES.get(task, 2e-4),
    # A frozen encoder cannot adapt to dropout.
    'dropout_rate': 0.5 if settings.mode == 'full' else 0.0,
    # An untrained head could not rank anything.
    'tied_targets': settings.mode == 'zero_shot',
  }
  return settings.with_missing(defaults)


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
  known = list(dict.fromkeys(itertools.chain(*SELECT_BY.values())))
  if settings.select_by not in (None, *known):
    raise SettingsError(f'--select_by: {unknown(settings.select_by, known)}')
  if settings.concatenate and not settings.pretrained:
    raise SettingsError(
      '--concatenate adds the vectors of more runs to those of --pretrained: '
      'give --pretrained=DIR too'
    )
  if not settings.num_steps and settings.head_epochs >= settings.num_epochs:
    raise SettingsError(
      f'--head_epochs={settings.head_epochs} leaves none of the '
      f'--num_epochs={settings.num_epochs} for the encoder: take fewer, or '
      '--mode=frozen'
    )
