"""The flags of the augmentations."""

import dataclasses

from experiments.flags.binder import Settings, flag


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentationSettings(Settings, group='objective'):
  """How strong the augmentations are."""

  crop_ratio: float = flag(
    0.4, 'Share of the behaviours that crop keeps.', above=0.0, high=1.0
  )
  mask_ratio: float | None = flag(
    0.6, 'Share of the behaviours that mask hides.', above=0.0, high=1.0
  )
  reorder_ratio: float = flag(
    0.6, 'Share of the behaviours that reorder shuffles.', above=0.0, high=1.0
  )
