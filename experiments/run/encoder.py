"""The encoder of a run: new, or from the checkpoint of another run."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adaptssr_jax.checkpoint.encoders import restore_model
from adaptssr_jax.encoder.layers import INIT_STDDEV
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.encoder.transfer import map_item_rows
from adaptssr_jax.table.lookup import model_params
from adaptssr_jax.training.devices import host_device, init_in_parts
from experiments.flags.binder import SettingsError
from experiments.flags.shared import EncoderSettings
from experiments.run.process import print_line

# Fields on which the parameters in a checkpoint do not depend.
OVERRIDABLE_FIELDS = ('dropout_rate', 'dtype', 'readout')
# What to check if a run knows none of the items.
OTHER_IDS = (
  'Are the item ids those of the data set of that run, written the same way?'
)
# An encoder, and the parameters of its model.
Model = tuple[UserEncoder, dict[str, Any]]


class Source(NamedTuple):
  """The model of a run to start from."""

  path: str  # the workdir of the run
  encoder: UserEncoder  # its encoder
  params: dict[str, Any]  # of its model
  vocabulary: Sequence[str]  # the raw ids of its items


def open_source(path: str, *, shard_table: bool = False) -> Source | None:
  """Restores the model of a run; None without a path.

  Args:
    shard_table: the flag. With it the parameters stay on the host, so that no
      accelerator ever has to hold the whole table.

  Raises:
    CheckpointError: the run cannot be read.
  """
  if not path:
    return None
  # A plan traces its caller.
  with jax.ensure_compile_time_eval():
    return Source(
      path, *restore_model(path, device=_source_device(shard_table))
    )


def make_encoder(
  settings: EncoderSettings,
  items: Sequence[str],
  key: jax.Array,
  *,
  source: Source | None = None,
  shard_table: bool = False,
) -> tuple[UserEncoder, dict[str, Any]]:
  """Makes an encoder for the items of a data set, and its parameters.

  Args:
    items: the raw ids of the items.
    source: the run to start from; None starts at random.
    shard_table: the flag. With it no device holds the whole table: a new table
      consists of `Shards`, and that of a source is on the host.

  Returns:
    The encoder, and the parameters `table` and `encoder` of the model.
  """
  given = settings.encoder_fields()
  if source is None:
    try:
      encoder = UserEncoder(num_items=len(items), **given)
    except ValueError as error:
      raise SettingsError(f'the encoder cannot be built: {error}') from error
    init = functools.partial(_init, encoder, settings.item_stddev)
    # A plan traces this function, and needs the shapes only.
    if shard_table and not isinstance(key, jax.core.Tracer):
      return encoder, init_in_parts(init, key)
    return encoder, init(key)

  for name, value in given.items():
    has = getattr(source.encoder, name)
    if name not in OVERRIDABLE_FIELDS and has != value:
      raise SettingsError(
        f'--{name}={value} contradicts {source.path}, which has {has}: leave '
        'out the flag, or the one that implies it, or start from another run'
      )
  free = {name: given[name] for name in OVERRIDABLE_FIELDS if name in given}
  encoder = source.encoder.clone(num_items=len(items), **free)
  with jax.default_device(_source_device(shard_table)):
    fresh = _init(encoder, settings.item_stddev, key)['table']
  table, found = map_item_rows(
    source.params['table'], fresh, source.vocabulary, items
  )
  _print_found(source, found, items, 'initialised at random')
  return encoder, {'table': table, 'encoder': source.params['encoder']}


def with_items(
  source: Source, items: Sequence[str]
) -> tuple[UserEncoder, dict[str, Any]]:
  """The encoder of a run for the items of a data set, matched by raw id.

  Unknown items get the embedding of the mask, which the encoder has learned to
  treat as an unknown item. Random embeddings would add noise to user vectors,
  which would then depend on the data set.
  """
  table = source.params['table']
  masked = jnp.broadcast_to(table[-1], (len(items) + 2, table.shape[1]))
  table, found = map_item_rows(table, masked, source.vocabulary, items)
  _print_found(source, found, items, 'treated as masked')
  encoder = source.encoder.clone(num_items=len(items))
  return encoder, source.params | {'table': table}


def _print_found(
  source: Source, found: int, items: Sequence[str], others: str
) -> None:
  """Prints how many items a run knows, and what happens to the others."""
  line = f'{source.path}: knows all {len(items):,} items'
  if found < len(items):
    line = (
      f'{source.path}: knows {found:,} of {len(items):,} items; the others are '
      f'{others}'
    )
  print_line(line if found else f'WARNING: {line}. {OTHER_IDS}')


def restored_head(
  head: dict[str, Any], items: Sequence[str], source: Source
) -> dict[str, Any]:
  """The head of a run where it has parameters of the same shapes, else `head`.

  Args:
    head: the initial parameters by name; `bias`, if any, has a number per id.
    items: raw item ids of the data set, by which biases are matched.
  """
  saved, known = source.params.get('head', {}), source.vocabulary
  found = {}
  for name in head.keys() - {'bias'}:
    shapes, own = (jax.tree.map(np.shape, x.get(name)) for x in (saved, head))
    if shapes == own:
      found[name] = saved[name]
  if 'bias' in head and np.shape(saved.get('bias')) == (len(known) + 1,):
    # As tables with one feature, where the mask, which has no bias, gets 0.
    tables = [
      jnp.append(jnp.asarray(bias), 0.0)[:, None]
      for bias in (saved['bias'], head['bias'])
    ]
    bias, _ = map_item_rows(*tables, known, items)
    found['bias'] = bias[:-1, 0]
  return head | found


def _source_device(shard_table: bool) -> jax.Device:
  return host_device() if shard_table else jax.local_devices()[0]


# Jitted, because it takes seconds op by op; compiled once per process.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _init(
  encoder: UserEncoder, item_stddev: float | None, key: jax.Array
) -> dict[str, Any]:
  variables = encoder.init(key, jnp.ones((1, 1), jnp.int32))
  params = model_params(variables['params'])
  if item_stddev is None:
    return params
  return params | {'table': item_stddev / INIT_STDDEV * params['table']}
