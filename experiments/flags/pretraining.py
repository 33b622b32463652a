"""The flags of pre-training: defaults, checks, and what follows from them."""

import dataclasses
import sys

from experiments.flags.binder import SettingsError, flag
from experiments.flags.objectives import TRAITS, ObjectiveSettings, traits_of
from experiments.flags.shared import EncoderSettings, PlanSettings

# The objectives that can share their views.
OF_VIEWS = ('pooled_items', 'adaptssr')
# The shortest slice, unless the encoder reads fewer behaviours.
_SLICE_FROM = 15
# The initial item table is wider if the user vector predicts items: at 0.02 all
# scores are so similar that training makes no progress for epochs.
_ITEM_STDDEV = 0.06
# The interests of a user in IDICL. Its paper was not found.
_INTERESTS = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainSettings(PlanSettings, EncoderSettings, ObjectiveSettings):
  """The flags of pre-training."""

  init_from: str = flag(
    '', 'Workdir of a run whose encoder to start from; else at random.'
  )
  select_by: str = flag(
    'loss',
    'How the best epoch is chosen. loss: by the validation loss. probe: by a '
    'regression on the user vectors for --probe_task, by its accuracy, its AUC '
    '(conversion) or NDCG@10 (ranking); the mean of several tasks.',
    choices=('loss', 'probe'),
  )
  probe_task: tuple[str, ...] = flag(
    ('gender',),
    '--select_by=probe: the tasks of the probe, fitted on their training rows '
    'and scored on their validation rows of the stored split. With another '
    '--split_seed in fine-tuning, these rows may be test rows there.',
  )

  def mutable_names(self) -> set[str]:
    """Excludes the length of a run during which augmentations get stronger."""
    free = super().mutable_names()
    grows = any(each.has_curriculum for each in self.traits)
    if grows and not self.curriculum_steps:
      free -= {'num_epochs', 'num_steps'}
    return free

  def without_effect(self) -> dict[str, str]:
    """The flags of objectives and tasks that this run does not have."""
    used = set().union(*(flags_of(self, name) for name in self.objective))
    every = {name: flags_of(self, name) for name in TRAITS}
    given = f'--objective={",".join(self.objective)}'
    if self.augmentations is not None:
      given += f' --augmentations={",".join(self.augmentations)}'
    found = {}
    for flag_name in sorted(set().union(*every.values()) - used):
      names = [name for name, flags in every.items() if flag_name in flags]
      found[flag_name] = (
        f'has no effect with {given}; it is for {" or ".join(names)}'
      )
    if len(self.objective) == 1:
      found['objective_weights'] = 'is for several objectives'
    if self.select_by != 'probe':
      found['probe_task'] = 'is for --select_by=probe'
    return found | super().without_effect()


def flags_of(settings: ObjectiveSettings, objective: str) -> set[str]:
  """The flags of objectives, and of windows, that an objective uses."""
  traits = traits_of(settings, objective)
  drawn = set().union(*traits.augmentations)
  used = {
    'augmentations': traits.is_augmented,
    'second_augmentations': traits.is_augmented,
    'num_slices': traits.is_augmented or 'slice' in drawn,
    'slice_lengths': 'slice' in drawn,
    'mask_ratio': traits.mask_ratio,
    'temperature': traits.temperature,
    'curriculum_steps': traits.has_curriculum,
    'sampled_items': traits.over_all_items,
    'output_bias': traits.has_bias,
    'window': not (traits.sees_histories or traits.sees_partners),
  }
  found = {name for name, is_used in used.items() if is_used}
  ratios = {f'{name}_ratio' for name in drawn - {'slice'}}
  return found | ratios | {*traits.flags}


def with_defaults(settings: PretrainSettings) -> PretrainSettings:
  """Sets flags that were not given to the defaults of the objective."""
  objective, defaults = settings.objective, {}
  if 'causal_items' in objective:
    if settings.causal is False:
      raise SettingsError(
        '--objective=causal_items needs --causal=true, or each state would see '
        'the item that it predicts: leave --causal out'
      )
    defaults['causal'] = True
  if objective == ('causal_items',):
    # Only the last state learns to predict, and the pooling is not trained.
    defaults['readout'] = 'last'
  if 'idicl' in objective and not settings.init_from:
    defaults |= {'num_queries': _INTERESTS, 'cosine_pooling': True}
  if any(each.from_the_vector for each in settings.traits):
    defaults['item_stddev'] = _ITEM_STDDEV
  return settings.with_missing(defaults)


def check_objective(settings: ObjectiveSettings) -> None:
  """Raises `SettingsError` if flags of the objective contradict each other."""
  parse_weights(settings)
  parse_fusion(settings.fusion)
  # The length that the encoder reads is not known yet.
  slice_lengths_of(settings, sys.maxsize)
  if settings.window == 'random' and any(
    each.sees_partners for each in settings.traits
  ):
    raise SettingsError(
      '--window=random does not go with --objective=duorec, whose partners '
      'share their very last behaviour: leave --window out'
    )
  _check_second(settings)
  _check_ranking(settings)


def _check_second(settings: ObjectiveSettings) -> None:
  """Refuses --second_augmentations that contradict other flags."""
  second = settings.second_augmentations
  for name, traits in zip(settings.objective, settings.traits, strict=True):
    first, last = traits.augmentations[0], traits.augmentations[-1]
    if ('slice' in first) != ('slice' in last):
      raise SettingsError(
        f'--objective={name}: --second_augmentations={",".join(last)} and '
        f'--augmentations={",".join(first)}: give slice to both views or to '
        'neither'
      )
  if second and settings.num_slices != 2:
    raise SettingsError(
      f'--second_augmentations is for two views, not --num_slices='
      f'{settings.num_slices}: leave out one of the two flags'
    )


def _check_ranking(settings: ObjectiveSettings) -> None:
  """Refuses settings of AdaptSSR that its --loss_form does not support."""
  if settings.smooth and (
    settings.loss_form == 'list' or not settings.hard_negatives
  ):
    raise SettingsError(
      f'--smooth={settings.smooth:g} is for hard pairs: leave it out, or '
      '--loss_form=list and --hard_negatives=false'
    )
  if settings.loss_form == 'list' and not settings.hard_negatives:
    raise SettingsError(
      '--hard_negatives=false is for --loss_form=pairs; a list always has all '
      'negatives: leave it out'
    )


def shares_views(settings: ObjectiveSettings) -> bool:
  """Whether AdaptSSR and pooled items use the same views: plain slices."""
  views = {traits_of(settings, name).augmentations for name in OF_VIEWS}
  return set(OF_VIEWS) <= set(settings.objective) and len(views) == 1


def slice_lengths_of(
  settings: ObjectiveSettings, max_length: int
) -> tuple[int, int]:
  """The lengths of the shortest and of the longest slice."""
  if not settings.slice_lengths:
    return min(_SLICE_FROM, max_length), max_length
  text = ','.join(settings.slice_lengths)
  try:
    low, high = map(int, settings.slice_lengths)
  except ValueError:
    low = high = 0
  if not 1 <= low <= high:
    raise SettingsError(
      '--slice_lengths must be two numbers, the shortest and longest slice, '
      f'such as 15,100; not {text}'
    )
  if high > max_length:
    raise SettingsError(
      f'--slice_lengths={text}: the encoder reads {max_length} behaviours; '
      'shorten the slices or give a larger --max_length'
    )
  return low, high


def parse_weights(settings: ObjectiveSettings) -> dict[str, float]:
  """`--objective_weights` by objective; empty if the flag is not given."""
  words = settings.objective_weights
  if not words:
    return {}
  try:
    weights = [float(word) for word in words]
  except ValueError:
    weights = []
  if len(weights) != len(settings.objective) or not all(
    0 < weight < float('inf') for weight in weights
  ):
    raise SettingsError(
      f'--objective_weights={",".join(words)} must be a number above 0 for '
      f'each of --objective={",".join(settings.objective)}'
    )
  return dict(zip(settings.objective, weights, strict=True))


def parse_fusion(text: str) -> str | float:
  """Parses `--fusion`: a word, or a number in [0, 1]."""
  if text in ('adaptive', 'batch_mean'):
    return text
  try:
    value = float(text)
  except ValueError:
    value = -1.0
  if not 0 <= value <= 1:
    raise SettingsError(
      f'--fusion must be adaptive, batch_mean or a number in [0, 1], not {text}'
    )
  return value
