"""Saves and restores encoders, independently of the run that trained them."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from adaptssr_jax.checkpoint import files
from adaptssr_jax.checkpoint.checkpoints import Checkpoints
from adaptssr_jax.checkpoint.items import (
  Description,
  describe,
  read_description,
  read_items,
  saved_shapes,
  shapes_by_path,
)
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.errors import CheckpointError
from adaptssr_jax.table.lookup import encoder_params, model_params
from adaptssr_jax.table.row_adam import (
  AdamSettings,
  RowAdamState,
  apply_pending_rows,
)
from adaptssr_jax.training.row_step import RowOptState
from adaptssr_jax.training.step import init_state

_ROW_OPT_STATE = set(RowOptState._fields)


def save_encoder(
  path: str | pathlib.Path,
  encoder: UserEncoder,
  params: Mapping[str, Any],
  vocabulary: Sequence[str],
) -> None:
  """Saves an encoder that was trained elsewhere as a run of this code base.

  Fine-tuning, embedding and `restore_encoder` can then start from it.

  Args:
    path: the folder of a new run, which must not hold checkpoints yet.
    encoder: the encoder.
    params: its parameters, what `encoder.init` returns under 'params'; arrays
      of JAX or NumPy.
    vocabulary: the raw item ids; that of item i is at index i - 1.

  Raises:
    CheckpointError: there are checkpoints already, or the disk is full.
    ValueError: the vocabulary does not have `encoder.num_items` different
      strings, or the parameters do not fit the encoder.

  Example:
    >>> import tempfile
    >>> encoder = UserEncoder(num_items=2, max_length=4, embed_dim=4)
    >>> items = jax.numpy.array([[1, 2, 0]])
    >>> params = encoder.init(jax.random.key(0), items)['params']
    >>> folder = tempfile.mkdtemp()
    >>> save_encoder(folder, encoder, params, ['a', 'b'])
    >>> encoder, params, vocabulary = restore_encoder(folder)
    >>> encoder.apply({'params': params}, items).shape, vocabulary
    ((1, 4), ['a', 'b'])
  """
  if len(vocabulary) != encoder.num_items:
    raise ValueError(
      f'a vocabulary of {len(vocabulary)} ids does not fit an encoder of '
      f'{encoder.num_items} items'
    )
  known = set()
  for name in vocabulary:
    if not isinstance(name, str):
      raise ValueError(f'a raw item id is a string, not {name!r}')
    if name in known:
      raise ValueError(f'the vocabulary has the raw item id {name!r} twice')
    known.add(name)
  _check_params(encoder, params)
  params = model_params(jax.tree.map(jnp.asarray, flax.core.unfreeze(params)))
  save_model(path, params, describe(encoder, list(vocabulary), flags={}))


def _check_params(encoder: UserEncoder, params: Mapping[str, Any]) -> None:
  items = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  made = jax.eval_shape(encoder.init, jax.random.key(0), items)['params']
  found = shapes_by_path(params)
  for name, shape in shapes_by_path(made).items():
    if found.get(name) != shape:
      raise ValueError(
        f'the parameters do not fit the encoder: {name} is '
        f'{found.get(name, "missing")}, not {shape}; give what encoder.init '
        "returns under 'params'"
      )


def save_model(
  path: str | pathlib.Path, params: dict[str, Any], description: Description
) -> None:
  """Saves a model, including its heads, as a run of this code base.

  Args:
    path: the folder of a new run, which must not hold checkpoints yet.
    params: the parameters of the model: `table`, `encoder` and, optionally,
      `head`.
    description: the description of the model, see `items.describe`.

  Raises:
    CheckpointError: there are checkpoints already, or the disk is full.
  """
  if files.saved_steps(pathlib.Path(path) / files.FOLDER):
    raise CheckpointError(
      f'{path}: there are checkpoints already: choose another folder'
    )
  state = init_state(params, optax.sgd(1.0))
  with Checkpoints(path, keep=1) as checkpoints:
    checkpoints.save(state, description)


def restore_description(path: str | pathlib.Path) -> Description:
  """Reads the description in a checkpoint; for `path` see `restore_encoder`."""
  return read_description(files.checkpoint_at(path))


def restore_encoder(
  path: str | pathlib.Path,
) -> tuple[UserEncoder, dict[str, Any], list[str]]:
  """Rebuilds a pre-trained or fine-tuned encoder from its checkpoint alone.

  Args:
    path: the workdir of a run, or its folder of checkpoints, of which the best
      is used if the run has scored them, else the latest. Or the folder of one
      checkpoint.

  Returns:
    The encoder, its parameters on the first device, and the vocabulary, which
    has the raw id of item i at index i - 1.

  Raises:
    CheckpointError: there is no checkpoint, or it is damaged.

  Example: see `save_encoder`.
  """
  encoder, params, vocabulary = restore_model(path)
  return encoder, encoder_params(params), vocabulary


def restore_model(
  path: str | pathlib.Path, *, device: jax.Device | None = None
) -> tuple[UserEncoder, dict[str, Any], list[str]]:
  """As `restore_encoder`, with all parameters of the model.

  Args:
    path: see `restore_encoder`.
    device: the device of the parameters; None: the first device.

  Returns:
    The encoder, the parameters of the model, see `table.lookup`, and the
    vocabulary.

  Raises:
    CheckpointError: there is no checkpoint, or it is damaged.
  """
  sharding = SingleDeviceSharding(device or jax.local_devices()[0])
  found = files.checkpoint_at(path)
  description = read_description(found)
  wanted = {
    'params': saved_shapes(found, 'params', sharding),
    'opt_state': saved_shapes(found, 'opt_state', sharding),
  }
  # The state of the row optimizer is needed to apply pending updates of rows.
  saved = wanted['opt_state']
  if not (isinstance(saved, dict) and saved.keys() == _ROW_OPT_STATE):
    del wanted['opt_state']
  restored = read_items(
    found,
    {name: ocp.args.StandardRestore(tree) for name, tree in wanted.items()},
  )
  params = restored['params']
  if 'table' not in params:
    # Saved by an older version, in which the encoder held the table.
    params |= model_params(params['encoder'])
  table = params['table']
  if 'opt_state' in restored:
    saved = restored['opt_state']['table']
    settings = AdamSettings(**saved['settings'])
    state = RowAdamState(**saved | {'settings': settings})
    table = apply_pending_rows(table, state)
  with files.reading(found):
    encoder = UserEncoder(**description.encoder)
  # A sharded table may have padding rows.
  params['table'] = table[: encoder.mask_id + 1]
  return encoder, params, description.vocabulary
