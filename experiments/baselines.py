"""What a practitioner tries first: a task without a user model.

  python -m experiments.baselines --method=bag_of_items --task=gender

bag_of_items: logistic regression on which items a user has seen (labels);
bag_svd: on the directions in which the TF-IDF of all users differs most;
most_popular, last_item: counts of the training rows (ranking). They leave the
same `result.json` and `predictions.npz` as `experiments.finetune`.
"""

from experiments.flags.small_commands import BaselineSettings
from experiments.run.command import run

if __name__ == '__main__':
  # Bad flags, and --help, are answered before what follows is imported.
  run('experiments.baselines', BaselineSettings)

import pathlib
from typing import Any

from adaptssr_jax.data import resplit
from experiments.finetuning.counts import rank_by_counts
from experiments.finetuning.predictions import write_result
from experiments.flags.binder import SettingsError
from experiments.probing.labelled_rows import classify_bags, classify_svd
from experiments.run.data import check_split_seed, open_data
from experiments.run.process import tell_result
from experiments.run.workdir import opened_workdir


def main(settings: BaselineSettings) -> dict[str, Any]:
  """Fits the baseline, and returns what `result.json` says."""
  if settings.num_components and settings.method != 'bag_svd':
    raise SettingsError(
      f'--num_components is for --method=bag_svd, not {settings.method}: leave '
      'it out'
    )
  with opened_workdir(settings) as folder:
    return baseline_in(folder, settings)


def baseline_in(
  folder: pathlib.Path, settings: BaselineSettings
) -> dict[str, Any]:
  """Fits the baseline in an open folder."""
  check_split_seed(settings)
  data = resplit(open_data(settings, settings.task), settings.split_seed)
  train = data.splits['train'].first(settings.train_users)
  all_rows = data
  data = data._replace(splits=data.splits | {'train': train})
  ranks = settings.method in ('most_popular', 'last_item')
  if ranks != (data.kind == 'ranking'):
    raise SettingsError(
      f'--method={settings.method} cannot do --task={settings.task}, which is '
      f'a {data.kind} task: choose another of the two'
    )
  if ranks:
    chosen, outputs = rank_by_counts(
      data, last_item=settings.method == 'last_item'
    )
  elif settings.method == 'bag_svd':
    chosen, outputs = classify_svd(
      all_rows,
      settings.max_length,
      num_components=settings.num_components or 64,
      train_users=settings.train_users,
    )
  else:
    chosen, outputs = classify_bags(data, settings.max_length)
  about = {'task': settings.task, 'method': settings.method} | chosen
  result = write_result(folder, about, outputs, data)
  scores = (f'{name} {value:.4f}' for name, value in result['test'].items())
  tell_result(f'{settings.method}, {settings.task}: {", ".join(scores)}')
  return result
