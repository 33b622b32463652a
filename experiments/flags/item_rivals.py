"""The flags of the rivals that predict items."""

import dataclasses

from experiments.flags.binder import Settings, flag


@dataclasses.dataclass(frozen=True, kw_only=True)
class ItemRivalSettings(Settings, group='objective'):
  """What MSDP and ECL weigh, and how far MSDP looks ahead."""

  max_window: int = flag(
    32, 'msdp: the most behaviours of the window that is predicted.', low=1
  )
  msdp_regularizer: float = flag(
    0.1,
    'msdp: what it counts that a masked prefix has the vector of the whole.',
    low=0.0,
  )
  ecl_contrast: float = flag(
    0.005,
    'ecl: what the contrast of dropout passes counts, if masked items count 1.',
    low=0.0,
  )
  ecl_discriminator: float = flag(
    0.25,
    'ecl: what it counts to tell replaced behaviours, if masked items count 1.',
    low=0.0,
  )
