"""What a fine-tuned model predicts, computed without the command."""

import jax
import jax.numpy as jnp
import numpy as np

from adaptssr_jax.checkpoint.encoders import restore_encoder
from adaptssr_jax.encoder.model import TaskHead
from adaptssr_jax.table.lookup import encoder_params
from tests.tiny_runs import saved_state


def predictions(settings):
  with np.load(f'{settings.workdir}/predictions.npz') as saved:
    return dict(saved)


def logits_by_hand(settings, step, users):
  """Of a saved model for a split, without batches and devices."""
  encoder, _, _ = restore_encoder(settings.workdir)
  params = saved_state(settings.workdir, step)['params']
  rows = np.arange(len(users.items))
  items = jnp.asarray(users.items.padded(rows, encoder.max_length))
  head = TaskHead(num_outputs=params['head']['output']['kernel'].shape[1])
  vectors = jax.jit(encoder.apply)({'params': encoder_params(params)}, items)
  return np.asarray(head.apply({'params': params['head']}, vectors))
