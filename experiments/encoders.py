"""The encoder of a run: fresh, or from the checkpoint of another run."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adaptssr_jax.checkpoint import restore_encoder, restore_model
from adaptssr_jax.layers import INIT_STDDEV
from adaptssr_jax.models import UserEncoder
from adaptssr_jax.transfer import map_item_rows
from experiments.process import tell
from experiments.settings import SettingsError
from experiments.shared_settings import EncoderSettings

# What a checkpoint's parameters do not depend on.
FREE_FIELDS = ('dropout_rate', 'dtype', 'readout')


def make_encoder(
  settings: EncoderSettings,
  items: Sequence[str],
  key: jax.Array,
  *,
  source: str = '',
) -> tuple[UserEncoder, dict[str, Any]]:
  """Makes an encoder for the items of a data set, and its parameters.

  Args:
    settings: the fields of the encoder that were given.
    items: raw item ids of the data set.
    key: of what is drawn at random.
    source: workdir of the run to start from; nothing for a random start.

  Returns:
    The encoder and its parameters. Prints how many items the source knew.

  Raises:
    SettingsError: a field was given that contradicts the source.
    CheckpointError: the source cannot be read.
  """
  given = settings.encoder_fields()
  if not source:
    encoder = _build(num_items=len(items), **given)
    return encoder, _init(encoder, key, settings.item_stddev)

  # Also where all else is traced, as for a plan.
  with jax.ensure_compile_time_eval():
    encoder, params, known = restore_encoder(source)
  for name, value in given.items():
    if name not in FREE_FIELDS and getattr(encoder, name) != value:
      raise SettingsError(
        f'--{name}={value} contradicts {source}, which has '
        f'{getattr(encoder, name)}: leave the flag out, or what needs it, or '
        'start from another run'
      )
  free = {name: given[name] for name in FREE_FIELDS if name in given}
  encoder = encoder.clone(num_items=len(items), **free)
  table, found = map_item_rows(
    params['item_embedding'],
    _init(encoder, key, settings.item_stddev)['item_embedding'],
    known,
    items,
  )
  tell(
    f'{source}: knows {found:,} of {len(items):,} items; the others start at '
    'random'
  )
  return encoder, {**params, 'item_embedding': table}


def restored_head(
  head: dict[str, Any], items: Sequence[str], *, source: str
) -> dict[str, Any]:
  """What a run has learned beside its encoder, in place of a fresh start.

  Args:
    head: the fresh parameters: `bias`, a number per id, and `projection`.
    items: raw item ids of the data set, by which biases are matched.
    source: workdir of the run.

  Returns:
    The parameters, fresh where the run has none, or others.
  """
  _, params, known = restore_model(source)
  saved = params.get('head', {})
  found = {
    name: saved[name]
    for name in ('projection',)
    if name in head and np.shape(saved.get(name)) == head[name].shape
  }
  if np.shape(saved.get('bias')) == (len(known) + 1,):
    # As tables of one feature; the mask has no bias.
    tables = [
      jnp.append(jnp.asarray(bias), 0.0)[:, None]
      for bias in (saved['bias'], head['bias'])
    ]
    bias, _ = map_item_rows(*tables, known, items)
    found['bias'] = bias[:-1, 0]
  return head | found


def _build(**fields: Any) -> UserEncoder:
  try:
    return UserEncoder(**fields)
  except ValueError as error:
    raise SettingsError(f'the encoder cannot be built: {error}') from error


def _init(
  encoder: UserEncoder, key: jax.Array, item_stddev: float | None
) -> dict[str, Any]:
  # Compiled, since op by op it takes seconds.
  params = jax.jit(encoder.init)(key, jnp.ones((1, 1), jnp.int32))['params']
  if item_stddev is None:
    return params
  scale = item_stddev / INIT_STDDEV
  return params | {'item_embedding': scale * params['item_embedding']}
