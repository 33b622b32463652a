"""The encoder of a run: fresh, or from the checkpoint of another run."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adaptssr_jax.checkpoint.encoders import restore_model
from adaptssr_jax.encoder.layers import INIT_STDDEV
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.encoder.transfer import map_item_rows
from adaptssr_jax.table.lookup import model_params
from adaptssr_jax.training.devices import host_device, init_in_parts
from experiments.flags.binder import Settings, SettingsError
from experiments.flags.shared import EncoderSettings
from experiments.run.process import tell

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
    The encoder, and the parameters `table` and `encoder` of the model. Prints
    how many items the source knew. With --shard_table no device holds the
    table whole: a new one is of `Shards`, one of a source on the host.

  Raises:
    SettingsError: a field was given that contradicts the source.
    CheckpointError: the source cannot be read.
  """
  given = settings.encoder_fields()
  if not source:
    encoder = _build(num_items=len(items), **given)
    init = functools.partial(_init, encoder, settings.item_stddev)
    # A plan is traced, and needs no more than the shapes.
    if is_split(settings) and not isinstance(key, jax.core.Tracer):
      return encoder, init_in_parts(init, key)
    return encoder, init(key)

  device = source_device(settings)
  # Also where all else is traced, as for a plan.
  with jax.ensure_compile_time_eval():
    encoder, params, known = restore_model(source, device=device)
  for name, value in given.items():
    if name not in FREE_FIELDS and getattr(encoder, name) != value:
      raise SettingsError(
        f'--{name}={value} contradicts {source}, which has '
        f'{getattr(encoder, name)}: leave the flag out, or what needs it, or '
        'start from another run'
      )
  free = {name: given[name] for name in FREE_FIELDS if name in given}
  encoder = encoder.clone(num_items=len(items), **free)
  with jax.default_device(device):
    init = functools.partial(_init, encoder, settings.item_stddev)
    fresh = init(key)['table']
  table, found = map_item_rows(params['table'], fresh, known, items)
  tell(
    f'{source}: knows {found:,} of {len(items):,} items; the others start at '
    'random'
  )
  return encoder, {'table': table, 'encoder': params['encoder']}


def with_items(
  encoder: UserEncoder,
  params: dict[str, Any],
  known: Sequence[str],
  items: Sequence[str],
  *,
  source: str,
) -> tuple[UserEncoder, dict[str, Any]]:
  """The same encoder for the items of a data set, matched by raw id.

  An item that it does not know counts as a masked one, about which it has
  learned to know nothing. At random, the vector of a user would depend on the
  data set, and of an unknown item it would say what is not so.

  Args:
    encoder: the encoder.
    params: of the model.
    known: the raw ids of its items.
    items: the raw ids of the items of the data set.
    source: where it was found, to be told.
  """
  table = params['table']
  masked = jnp.broadcast_to(table[-1], (len(items) + 2, table.shape[1]))
  table, found = map_item_rows(table, masked, known, items)
  tell(
    f'{source}: knows {found:,} of {len(items):,} items; the others count as '
    'masked'
  )
  encoder = encoder.clone(num_items=len(items))
  return encoder, params | {'table': table}


def restored_head(
  head: dict[str, Any], items: Sequence[str], *, source: str
) -> dict[str, Any]:
  """What a run has learned beside its encoder, in place of a fresh start.

  Args:
    head: the fresh parameters: maybe `bias`, a number per id, and others.
    items: raw item ids of the data set, by which biases are matched.
    source: workdir of the run.

  Returns:
    The parameters, fresh where the run has none, or others.
  """
  _, params, known = restore_model(source)
  saved = params.get('head', {})
  found = {
    name: saved[name]
    for name in head
    if name != 'bias' and _shapes(saved.get(name)) == _shapes(head[name])
  }
  if 'bias' in head and np.shape(saved.get('bias')) == (len(known) + 1,):
    # As tables of one feature; the mask has no bias.
    tables = [
      jnp.append(jnp.asarray(bias), 0.0)[:, None]
      for bias in (saved['bias'], head['bias'])
    ]
    bias, _ = map_item_rows(*tables, known, items)
    found['bias'] = bias[:-1, 0]
  return head | found


def _shapes(params: Any) -> Any:
  return jax.tree.map(np.shape, params)


def _build(**fields: Any) -> UserEncoder:
  try:
    return UserEncoder(**fields)
  except ValueError as error:
    raise SettingsError(f'the encoder cannot be built: {error}') from error


def is_split(settings: Settings) -> bool:
  """Whether each device is to hold a part of the item table."""
  return getattr(settings, 'shard_table', False)


def source_device(settings: Settings) -> jax.Device:
  """Where a checkpoint is restored: a table that is to be split, on the host.

  So no accelerator ever has to hold it whole.
  """
  return host_device() if is_split(settings) else jax.local_devices()[0]


# Compiled, since op by op it takes seconds; once for all runs of a process.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _init(
  encoder: UserEncoder, item_stddev: float | None, key: jax.Array
) -> dict[str, Any]:
  variables = encoder.init(key, jnp.ones((1, 1), jnp.int32))
  params = model_params(variables['params'])
  if item_stddev is None:
    return params
  return params | {'table': item_stddev / INIT_STDDEV * params['table']}
