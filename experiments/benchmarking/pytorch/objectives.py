"""Times the steps of all objectives in plain PyTorch.

  python objectives.py OPTIONS

OPTIONS is JSON, see `processes._run_pytorch`; the last line that it prints is
the result, also as JSON. An objective is a function of a `Model` and a batch of
tensors by name, and returns the loss. The formulas and their sources are in the
docstrings of `adaptssr_jax/objectives`. Settings are the defaults of the flags,
curricula are at their end, and every user has more than four behaviours.
"""

import json
import pathlib
import statistics
import sys
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from experiments.benchmarking.pytorch.edits import (
  draw,
  insert,
  keep,
  lengths,
  mask,
  one_of,
  prefix_and_rest,
  substitute,
  two_of,
)
from experiments.benchmarking.pytorch.losses import (
  adaptssr_loss,
  candidates_loss,
  coles_loss,
  nt_xent_loss,
  unit,
)
from experiments.benchmarking.pytorch.model import Model
from experiments.benchmarking.timing import timed

Batch = dict[str, Tensor]


def adaptssr(model: Model, batch: Batch) -> Tensor:
  """Ranks views."""
  first, second = (one_of(model.edited(batch['items'])) for _ in range(2))
  users = model.encode(first, first, second, second)
  return adaptssr_loss(users.unflatten(0, (2, 2)))


def masked_items(model: Model, batch: Batch) -> Tensor:
  """Predicts masked items."""
  items, mask_id = batch['items'], model.encoder.mask_id
  masked = mask(items, mask_id, 0.3)
  states = model.encoder.states(masked)[masked == mask_id]
  labels = items[masked == mask_id]
  return functional.cross_entropy(model.scores(states), labels)


def causal_items(model: Model, batch: Batch) -> Tensor:
  """Predicts each next item."""
  items, labels = batch['items'][:, :-1], batch['items'][:, 1:]
  states = model.encoder.states(items)[labels != 0]
  return functional.cross_entropy(model.scores(states), labels[labels != 0])


def pooled_items(model: Model, batch: Batch) -> Tensor:
  """Predicts the items of one slice from another."""
  first, second = model.slices(batch['items'])
  users = model.encode(first, second).flatten(0, 1)
  return model.set_loss(users, torch.cat([second, first]))


def next_items(model: Model, batch: Batch) -> Tensor:
  """Predicts the items after a prefix."""
  prefix, after = prefix_and_rest(batch['items'], 10)
  return model.set_loss(model.encoder(prefix), after)


def clue(model: Model, batch: Batch) -> Tensor:
  """Contrasts two dropout passes."""
  users = model.encode(batch['items'], batch['items'])
  return nt_xent_loss(unit(users), 0.1)


def idicl(model: Model, batch: Batch) -> Tensor:
  """Contrasts dropout passes of several interests."""
  users = model.encode(batch['items'], batch['items'])
  queries = unit(model.encoder.queries)
  cosines = queries @ queries.T * (1 - torch.eye(len(queries)))
  return nt_xent_loss(unit(users), 0.1 * len(queries)) + cosines.norm()


def cl4srec(model: Model, batch: Batch) -> Tensor:
  """Contrasts two different edits."""
  return nt_xent_loss(model.encode(*two_of(model.edited(batch['items']))))


def ccl(model: Model, batch: Batch) -> Tensor:
  """Contrasts two edits."""
  views = [one_of(model.edited(batch['items'])) for _ in range(2)]
  return nt_xent_loss(unit(model.encode(*views)))


def ccl_filled(model: Model, batch: Batch) -> Tensor:
  """Contrasts two views whose masked items are replaced by predictions."""
  model.eval()
  with torch.no_grad():
    filled, _ = model.fill(batch['items'].repeat(2, 1), 0.3)
  model.train()
  return nt_xent_loss(unit(model.encode(*filled.chunk(2))))


def coles(model: Model, batch: Batch) -> Tensor:
  """Contrasts slices."""
  return coles_loss(model.encode(*model.slices(batch['items'])))


def coserec(model: Model, batch: Batch) -> Tensor:
  """Contrasts edits, some of which use similar items."""
  items, similar = batch['items'], batch['similar']
  views = []
  for _ in range(2):
    edits = [substitute(items, similar), insert(items, similar)]
    views.append(one_of(torch.stack([*edits, *model.edited(items)])))
  return nt_xent_loss(model.encode(*views))


def duorec(model: Model, batch: Batch) -> Tensor:
  """Contrasts users with the same last item."""
  views = [batch['items'], batch['partner_items']]
  views = [keep(x, 0 * lengths(x), lengths(x) - 1) for x in views]
  return nt_xent_loss(model.encode(*views))


def ptum(model: Model, batch: Batch) -> Tensor:
  """Distinguishes a masked item, and the last two items, from random ones."""
  items, known = batch['items'], batch['behaviours']
  n, users = lengths(items), torch.arange(len(items))
  position = draw(n)
  masked = items.clone()
  masked[users, position] = model.encoder.mask_id
  last = keep(items, n - 2, n)[:, :2]
  labels = torch.cat([items[users, position][:, None], last], 1)[..., None]
  others = known[torch.randint(len(known), (len(items), 3, 4))]
  first, second = model.project(model.encode(masked, keep(items, 0 * n, n - 2)))
  return candidates_loss(
    torch.stack([first, second, second], 1),
    model.encoder.items(torch.cat([labels, others], 2)),
    others == labels,
  )


def msdp(model: Model, batch: Batch) -> Tensor:
  """Predicts the frequencies of items in a window after a prefix."""
  prefix, after = prefix_and_rest(batch['items'], 32)
  size = 1 + draw(lengths(after))
  masked = mask(prefix, model.encoder.mask_id, 0.3)
  users = model.encode(prefix, masked)
  predicted = model.set_loss(
    users[0] + model.prompt[size.log2().long()],
    keep(after, 0 * size, size),
    repeats=True,
  )
  alike = unit(model.predictor(users)) * unit(users.flip(0)).detach()
  return predicted + 0.1 * (1 - alike.sum(2)).mean()


def ecl(model: Model, batch: Batch) -> Tensor:
  """Detects replaced items, and contrasts dropout passes of users."""
  items = batch['items']
  filled, fill_loss = model.fill(items, 0.2)
  users = model.encode(items, items)
  embedded = model.encoder.items(filled) + model.condition(users[0])[:, None]
  states = model.discriminator.states(filled, embedded)
  real = items != 0
  found = functional.binary_cross_entropy_with_logits(
    model.is_replaced(states)[..., 0][real], (filled != items)[real].float()
  )
  return fill_loss + 0.005 * nt_xent_loss(unit(users), 0.05) + 0.25 * found


OBJECTIVES = {
  function.__name__: function
  for function in (
    *(adaptssr, masked_items, causal_items, pooled_items, next_items),
    *(clue, cl4srec, idicl, ccl, coles, ccl_filled, ptum, msdp, ecl),
    *(coserec, duorec),
  )
}


def main(options: dict[str, Any]) -> dict[str, Any]:
  """Times steps of one objective.

  Args:
    options: `objective`; `encoder`, the fields of `UserEncoder`; `arrays`, a
      file with batches, int32 [steps, users, length], padded with 0, as `items`
      and, if needed, `partner_items`, and with `similar`, int32 [ids, k], if
      needed; `threads`; `learning_rate`; `warm_up`, the number of first steps
      that are not timed; and `cpu_time`, whether to measure CPU time.
  """
  torch.manual_seed(0)
  torch.set_num_threads(options['threads'])
  if torch.cuda.is_available():
    torch.set_default_device('cuda')
  with np.load(options['arrays']) as arrays:
    batches = {name: arrays[name].astype(np.int64) for name in arrays}
  constants = {'behaviours': batches['items'][batches['items'] != 0]}
  if 'similar' in batches:
    constants['similar'] = batches.pop('similar')
  constants = {name: torch.tensor(array) for name, array in constants.items()}
  model = Model(options['encoder'])
  rate = options['learning_rate']
  optimizer = torch.optim.Adam(model.parameters(), lr=rate, fused=True)
  objective = OBJECTIVES[options['objective']]
  losses = []

  def step(number: int) -> None:
    """Trains on one batch, cut to the length of its longest user."""
    batch = {name: array[number] for name, array in batches.items()}
    length = max((x != 0).sum(1).max() for x in batch.values())
    batch = {name: torch.tensor(x[:, :length]) for name, x in batch.items()}
    loss = objective(model, batch | constants)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    # This waits until a GPU has finished the step.
    losses.append(loss.item())

  steps, users = batches['items'].shape[:2]
  clock = time.process_time if options['cpu_time'] else time.perf_counter
  seconds = timed(step, range(steps), warm_up=options['warm_up'], clock=clock)
  status = pathlib.Path('/proc/self/status').read_text()
  # The results have the names that `measure.measure` uses.
  return {
    'users_per_second': users / statistics.median(seconds),
    'step_seconds': seconds,
    'batch_size': users,
    'loss': losses[-1],
    'peak_mib': int(status.split('VmHWM:')[1].split()[0]) / 1024,
    'torch': torch.__version__,
    'threads': torch.get_num_threads(),
    'device': str(model.bias.device),
  }


if __name__ == '__main__':
  print(json.dumps(main(json.loads(sys.argv[1]))))
