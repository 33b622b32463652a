"""Times the public PyTorch implementation, unmodified, under its own Python.

  python reference.py OPTIONS

OPTIONS is JSON, see `processes._run_reference`. The last line that it prints is
the result, also as JSON.
"""

import functools
import importlib
import json
import pathlib
import statistics
import sys
import types
from typing import Any

import numpy as np

from experiments.benchmarking.timing import timed


def main(options: dict[str, Any]) -> dict[str, Any]:
  """Times steps of pre-training and, if asked to, the encoding of users.

  Args:
    options: `checkout`, its path; `settings`, the arguments of its model and
      data set; `rows`, a file of behaviours, int32 [users, length], padded with
      0; `batch_size`, `learning_rate`, `trim`, `inference`, `compile`,
      `bfloat16`; and `warm_up`, the number of first steps that are not timed.
  """
  peer = open_peer(options)
  starts = range(0, len(peer.rows) - peer.batch_size + 1, peer.batch_size)
  # The results have the names that `measure.measure` uses.
  time_it = functools.partial(timed, warm_up=options['warm_up'])
  seconds = time_it(functools.partial(train, peer), starts)
  rate = peer.batch_size / statistics.median(seconds)
  found = {'step_seconds': seconds, 'users_per_second': rate}
  if options['inference']:
    peer.model.eval()
    seconds = time_it(functools.partial(encode, peer), starts)
    rate = peer.batch_size / statistics.median(seconds)
    found |= {'encoding_seconds': seconds, 'encoded_users_per_second': rate}
  return found | {
    'batch_size': peer.batch_size,
    'torch': peer.torch.__version__,
    'threads': peer.torch.get_num_threads(),
    'device': str(peer.device),
  }


def open_peer(options: dict[str, Any]) -> types.SimpleNamespace:
  """Creates the model, data set and optimizer as its own script does."""
  # Imported by name, since this file is also imported without torch.
  torch = importlib.import_module('torch')
  torch.manual_seed(0)
  sys.path.insert(0, str(pathlib.Path(options['checkout']) / 'Code'))
  dataset = importlib.import_module('AdaptSSR.dataset')
  models = importlib.import_module('AdaptSSR.model')
  device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
  settings = types.SimpleNamespace(**options['settings'])
  rows = np.load(options['rows'])
  # Its data set reads the numbers of the users from a pickled array.
  numbers = pathlib.Path(options['rows']).with_suffix('.users')
  np.arange(len(rows)).dump(numbers)
  model = models.PretrainModel(settings, device).to(device)
  prepare = torch.compile if options['compile'] else lambda function: function
  return types.SimpleNamespace(
    torch=torch,
    device=device,
    rows=rows,
    data=dataset.PretrainDataset(rows, str(numbers), settings),
    model=model,
    loss_of=prepare(model),
    users_of=prepare(model.get_ur),
    autocast=functools.partial(
      torch.autocast,
      device.type,
      dtype=torch.bfloat16,
      enabled=options['bfloat16'],
    ),
    optimizer=torch.optim.Adam(model.parameters(), lr=options['learning_rate']),
    batch_size=options['batch_size'],
    trim=options['trim'],
  )


def train(peer: types.SimpleNamespace, start: int) -> None:
  """Makes the batch of the users from `start` on, and trains one step on it."""
  users = [peer.data[start + i] for i in range(peer.batch_size)]
  first, second, *masked = zip(*users, strict=True)
  # Both views are cut to one length, since the model concatenates them.
  views = on_device(peer, np.stack([*first, *second]))
  with peer.autocast():
    loss, *_ = peer.loss_of(
      *views.chunk(2),
      *(positions(peer, columns) for columns in masked),
    )
  peer.optimizer.zero_grad()
  loss.backward()
  peer.optimizer.step()
  if peer.device.type == 'cuda':
    peer.torch.cuda.synchronize()


def encode(peer: types.SimpleNamespace, start: int) -> None:
  """Encodes the users from `start` on, without dropout."""
  items = on_device(peer, peer.rows[start : start + peer.batch_size])
  with peer.torch.no_grad(), peer.autocast():
    peer.users_of(item_seq=items)[0].cpu()


def on_device(peer: types.SimpleNamespace, items: np.ndarray) -> Any:
  """Puts sequences on the device; `trim` cuts them to the longest of them."""
  if peer.trim:
    items = items[:, : int((items != 0).sum(axis=1).max())]
  return peer.torch.from_numpy(items).long().to(peer.device)


def positions(peer: types.SimpleNamespace, columns: Any) -> tuple[Any, Any]:
  """The rows and columns of masked positions, given the columns of each row."""
  rows = np.repeat(np.arange(len(columns)), [len(row) for row in columns])
  flat = np.array([column for row in columns for column in row], np.int64)
  return peer.torch.from_numpy(rows), peer.torch.from_numpy(flat)


if __name__ == '__main__':
  print(json.dumps(main(json.loads(sys.argv[1]))))
