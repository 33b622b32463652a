"""Pre-train user models by self-supervised ranking (AdaptSSR) in JAX.

Losses and augmentations need only JAX. Names that need Flax, Optax, Orbax or
TensorFlow Datasets are imported when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from adaptssr_jax.augment import (
  crop,
  insert,
  mask,
  one_of,
  random_slice,
  reorder,
  substitute,
  two_of,
)
from adaptssr_jax.losses import (
  adaptssr_loss,
  augmentation_weight,
  bpr_loss,
  coles_loss,
  listwise_ranking_loss,
  mpr_loss,
  nt_xent_loss,
)

if TYPE_CHECKING:
  from adaptssr_jax.checkpoint import restore_encoder, save_encoder
  from adaptssr_jax.encoder import (
    TaskHead,
    UserEncoder,
    encoder_from_reference,
  )
  from adaptssr_jax.training import TrainState, pmap_step

__all__ = [
  'TaskHead',
  'TrainState',
  'UserEncoder',
  'adaptssr_loss',
  'augmentation_weight',
  'bpr_loss',
  'coles_loss',
  'crop',
  'encoder_from_reference',
  'insert',
  'listwise_ranking_loss',
  'mask',
  'mpr_loss',
  'nt_xent_loss',
  'one_of',
  'pmap_step',
  'random_slice',
  'reorder',
  'restore_encoder',
  'save_encoder',
  'substitute',
  'two_of',
]

# Modules that are imported at first use, and the public names that they define.
_IMPORTED_LATER = {
  'checkpoint': ('restore_encoder', 'save_encoder'),
  'data': (),
  'diagnostics': (),
  'encoder': ('TaskHead', 'UserEncoder', 'encoder_from_reference'),
  'metrics': (),
  'training': ('TrainState', 'pmap_step'),
}


def __getattr__(name: str) -> Any:
  for module, names in _IMPORTED_LATER.items():
    if name == module or name in names:
      found = importlib.import_module(f'{__name__}.{module}')
      return found if name == module else getattr(found, name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__, *_IMPORTED_LATER})
