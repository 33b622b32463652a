"""The start of fine-tuning, and what a model predicts without the command."""

import jax
import jax.numpy as jnp
import numpy as np

from adaptssr_jax.checkpoint.encoders import restore_encoder
from adaptssr_jax.encoder.model import TaskHead
from adaptssr_jax.table.lookup import encoder_params
from experiments import finetune
from tests.tiny_runs import saved_state


def start_of(settings):
  """The task of a run, its model, and the parameters before the first step."""
  data = finetune.open_task(settings)
  key, _ = jax.random.split(jax.random.key(settings.seed))
  return data, *finetune.make_model(settings, data, key)


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
