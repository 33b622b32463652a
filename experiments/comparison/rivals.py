"""The rows of a comparison that are methods of others.

All start from the same masked items and take the flags of AdaptSSR's
pre-training but for their objective and what they were published with, except
those whose encoder has another shape: these come with a start of their own.
"""

from typing import Any


def rivals() -> dict[str, dict[str, Any]]:
  """The fields of each method, by name, as of `methods.Method`."""
  interests = {'num_queries': 4, 'cosine_pooling': True}
  return {
    'ptum': _rival('PTUM', 'ptum'),
    'clue': _rival('CLUE', 'clue'),
    'ccl': _rival(
      'CCL',
      'ccl',
      augmentations=('mask',),
      second_augmentations=('reorder',),
      mask_ratio=0.3,
      reorder_ratio=0.3,
    ),
    'masked_items_of_interests': {
      'title': 'Masked items, 4 interests',
      'flags': 'warm_start',
      'changes': interests,
    },
    'idicl': _rival('IDICL', 'idicl', after='masked_items_of_interests'),
    'cl4srec': _rival(
      'CL4SRec', 'cl4srec', crop_ratio=0.6, mask_ratio=0.3, reorder_ratio=0.6
    ),
    'coserec': _rival(
      'CoSeRec', 'coserec', crop_ratio=0.2, mask_ratio=0.7, reorder_ratio=0.2
    ),
    'duorec': _rival('DuoRec', 'duorec', window='last'),
    'coles': _rival('CoLES', 'coles', num_slices=5),
    'ecl': _rival('ECL', 'ecl', mask_ratio=0.2),
    'msdp': _rival('MSDP', 'msdp'),
    'next_items': _rival('Next items', 'next_items'),
    'sasrec': {
      'title': 'SASRec (causal items, full softmax)',
      'flags': 'warm_start',
      'changes': {'objective': ('causal_items',)},
    },
  }


def _rival(
  title: str, objective: str, *, after: str = 'masked_items', **changes: Any
) -> dict[str, Any]:
  return {
    'title': title,
    'flags': 'pretrain',
    'after': after,
    'changes': {'objective': (objective,), **changes},
  }
