"""The data of a task: opening, checking, and choosing the training rows."""

from collections.abc import Mapping

import numpy as np

from adaptssr_jax.checkpoint.encoders import restore_description
from adaptssr_jax.data import UserData, resplit
from experiments.finetuning.tasks import select_by
from experiments.flags.binder import SettingsError
from experiments.flags.finetuning import (
  SELECT_BY,
  FinetuneSettings,
  check_flags,
)
from experiments.flags.shared import LEAVE_ONE_OUT
from experiments.flags.small_commands import BaselineSettings
from experiments.run.data import check_split_seed, open_data
from experiments.run.process import print_line


def open_task(
  settings: FinetuneSettings, data: UserData | None = None
) -> UserData:
  """The data of the task, split by the flags.

  Args:
    data: the stored splits of the task, if it is open already.

  Raises:
    SettingsError: the flags do not fit the task.
  """
  data = open_rows(settings, data)
  if settings.kind and data.kind == 'ranking':
    raise SettingsError(
      f'--kind={settings.kind} needs labels; {settings.task} is a ranking '
      'task: leave it out'
    )
  data = data._replace(kind=settings.kind or data.kind)
  check_task(settings, data)
  return data


def open_rows(
  settings: FinetuneSettings | BaselineSettings, data: UserData | None = None
) -> UserData:
  """As `open_task`, without what only fine-tuning refuses."""
  check_split_seed(settings)
  data = data or open_data(settings, settings.task)
  task = settings.task
  if data.kind == 'pretrain':
    raise SettingsError(
      f'--task={task} has no labels and no targets: there is nothing to learn'
    )
  data = resplit(data, settings.split_seed)
  rows = data.splits['train'].num_rows
  if settings.train_users > rows:
    raise SettingsError(
      f'--train_users={settings.train_users} is more than the {rows} training '
      f'rows of {task}: take at most {rows}, or 0 for all'
    )
  return data


def with_first_rows(data: UserData, train_users: int) -> UserData:
  """The task with only the first training rows; 0: with all of them."""
  train = data.splits['train'].first(train_users)
  return data._replace(splits=data.splits | {'train': train})


def event_of(settings: FinetuneSettings, data: UserData) -> dict[str, str]:
  """Prints which event a conversion predicts; returns it for the result."""
  if data.kind != 'conversion':
    return {}
  event = data.vocabulary.labels[1]
  label = data.splits['train'].label[: settings.train_users or None]
  share = 100 * label.mean()
  print_line(f'event: {event} ({share:.3g} % of the training rows)')
  return {'event': event}


def check_task(settings: FinetuneSettings, data: UserData) -> None:
  """Refuses a task that cannot be learned or measured with these flags."""
  task, labels = settings.task, data.vocabulary.labels
  if len(labels) < 2:
    raise SettingsError(
      f'--task={task} has only one class or target, {labels[0]}: there is '
      'nothing to learn'
    )
  if data.kind == 'conversion' and len(labels) != 2:
    raise SettingsError(
      f'--kind=conversion needs 2 classes; {task} has {len(labels)}'
    )
  check_ranking(settings, data)
  _check_sources(settings, data)
  check_flags(settings, data.kind)
  _check_select_by(settings, data)


def check_ranking(settings: FinetuneSettings, data: UserData) -> None:
  """Refuses flags that do not fit a ranking task."""
  zero_shot = settings.mode == 'zero_shot'
  if data.kind != 'ranking':
    if zero_shot:
      raise SettingsError(
        f'--mode=zero_shot is for ranking tasks; {settings.task} is a '
        f'{data.kind} task: take another mode'
      )
    return
  if zero_shot and settings.tied_targets is False:
    raise SettingsError(
      '--mode=zero_shot ranks by the item table: leave out --tied_targets=false'
    )
  if settings.tied_targets and settings.shard_table:
    raise SettingsError(
      '--shard_table does not go with '
      f'{"--mode=zero_shot" if zero_shot else "--tied_targets"}, which scores '
      'targets by the whole item table: leave out either'
    )
  if zero_shot and not settings.pretrained:
    raise SettingsError(
      '--mode=zero_shot needs --pretrained=DIR, the workdir of a run that has '
      'learned to predict items: nothing is trained'
    )


def _check_sources(settings: FinetuneSettings, data: UserData) -> None:
  """Refuses source runs that have seen what the task tests."""
  runs = [('pretrained', settings.pretrained)] if settings.pretrained else []
  runs += [('concatenate', run) for run in settings.concatenate]
  for flag, run in runs:
    flags = restore_description(run).flags
    if data.kind == 'ranking':
      _refuse_known_targets(settings, flag, run, flags)
    _refuse_known_rows(settings, run, flags)


def _refuse_known_targets(
  settings: FinetuneSettings, flag: str, run: str, flags: Mapping[str, str]
) -> None:
  """Refuses a source run that was trained on items that the task holds out."""
  if flags.get('split') == LEAVE_ONE_OUT != settings.split:
    raise SettingsError(
      f'--{flag}={run} was trained with '
      '--split=leave_one_out, so that it has seen films that '
      f'--task={settings.task} holds out: take a run without it, or '
      '--task=next_item'
    )
  if settings.split == LEAVE_ONE_OUT and flags.get('task', '') not in (
    '',
    settings.task,
  ):
    raise SettingsError(
      f'--{flag}={run} was fine-tuned on '
      f'--task={flags["task"]}, so that it may have seen films that '
      f'--task={settings.task} holds out: take a pre-training run'
    )


def _refuse_known_rows(
  settings: FinetuneSettings, run: str, flags: Mapping[str, str]
) -> None:
  """Refuses a source run that was fine-tuned on test rows of this task.

  Rankings of a MovieLens data set hold out the same films, but split them
  differently, so that one task is trained on test rows of another.
  """
  own = settings.flag_values()
  if any(flags.get(name) != own[name] for name in ('dataset', 'events')):
    return
  trained, seed = flags.get('task', ''), flags.get('split_seed')
  if trained == settings.task and seed != own['split_seed']:
    raise SettingsError(
      f'{run} was fine-tuned on --task={trained} with --split_seed={seed}, so '
      'that it has seen labels of the test rows of '
      f'--split_seed={settings.split_seed}: take that seed, or a pre-training '
      'run'
    )
  same_films = ('click', 'thumb_up', 'click_by_user', 'thumb_up_by_user')
  if (
    settings.dataset.startswith('movielens_users/')
    and trained != settings.task
    and {trained, settings.task} <= set(same_films)
  ):
    raise SettingsError(
      f'{run} was fine-tuned on --task={trained}, so that it has seen films '
      f'that --task={settings.task} holds out: take a pre-training run'
    )


def _check_select_by(settings: FinetuneSettings, data: UserData) -> None:
  metric, known = select_by(settings, data), SELECT_BY[data.kind]
  if metric not in known:
    raise SettingsError(
      f'--select_by={metric} is not measured in a {data.kind} task: take one '
      f'of {", ".join(known)}'
    )
  if metric != 'auc':
    return
  other = 'log_loss' if data.kind == 'conversion' else 'accuracy'
  classes = data.vocabulary.labels
  if len(classes) != 2:
    raise SettingsError(
      f'--select_by=auc needs 2 classes; {settings.task} has {len(classes)}: '
      f'take --select_by={other}'
    )
  for name in ('validation', 'test'):
    label = data.splits[name].label
    if len(np.unique(label)) < 2:
      raise SettingsError(
        f'--select_by=auc needs both classes of {settings.task} in every '
        f'split; all {len(label):,} {name} rows are {classes[label[0]]}: take '
        f'--select_by={other}, or another --split_seed'
      )


def examples_of(settings: FinetuneSettings, data: UserData) -> UserData:
  """The task with the examples that are trained on, validated and tested.

  The training split has only the rows that `--train_users` asks for. In it, a
  user's validation and test positives may be drawn as negatives; excluding them
  would leak which targets are held out.
  """
  data = with_first_rows(data, settings.train_users)
  # With leave-one-out, the targets of a training row are only those that the
  # user has seen before, so nothing leaks.
  if data.kind == 'ranking' and settings.split != LEAVE_ONE_OUT:
    train = data.splits['train']
    data.splits['train'] = train._replace(targets=train.positives)
  return data
