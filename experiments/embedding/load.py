"""Encodes users by the encoder of this folder: raw item ids in, vectors out.

It needs jax, numpy, and flatbuffers, which `jax.export` uses to read. It does
not need the code that trained the encoder:

  encoder = Encoder()
  vectors = encoder([['item 3', 'item 7'], []])

The encoder is compiled once for each shape of its input. Both the number of
users and the length are padded to powers of two, so that there are few shapes.
"""

import json
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from jax import export


class Encoder:
  """Encodes users, as `experiments.embed` does.

  Args:
    folder: written by `experiments.export`; by default the folder of this file.

  Raises:
    ValueError: this version of JAX is too new or too old to read the program.
  """

  def __init__(
    self, folder: str | pathlib.Path = pathlib.Path(__file__).parent
  ):
    folder = pathlib.Path(folder)
    settings = json.loads((folder / 'settings.json').read_text())
    self.max_length = settings['encoder']['max_length']
    items = (folder / 'vocabulary').read_text().splitlines()
    self.numbers = {json.loads(item): i for i, item in enumerate(items, 1)}
    self.weights = jax.device_put(read_weights(folder / 'weights.safetensors'))
    artefact = bytearray((folder / 'encoder.jaxexport').read_bytes())
    self.encode = jax.jit(export.deserialize(artefact).call)

  def __call__(self, histories: Sequence[Sequence[str]]) -> np.ndarray:
    """Encodes users.

    Args:
      histories: the raw item ids of each user, oldest first. Only the last
        `max_length` are used. An unknown item is treated as a masked item.

    Returns:
      float32 [users, dim]; zeros for a user without items.

    Raises:
      TypeError: a history is not a list of strings.
    """
    unknown = len(self.numbers) + 1
    rows = []
    for history in histories:
      if (
        isinstance(history, str)
        or not np.iterable(history)
        or not all(isinstance(item, str) for item in history)
      ):
        raise TypeError(f'a history is a list of raw item ids, not {history!r}')
      last = history[-self.max_length :]
      rows.append([self.numbers.get(item, unknown) for item in last])
    longest = max(map(len, rows), default=0)
    users, length = (
      1 << max(n - 1, 0).bit_length() for n in (len(rows), longest)
    )
    items = np.zeros((users, min(length, self.max_length)), np.int32)
    for padded, row in zip(items, rows, strict=False):
      padded[: len(row)] = row
    return np.asarray(self.encode(self.weights, items))[: len(rows)]


def read_weights(path: pathlib.Path) -> dict[str, np.ndarray]:
  """The float32 arrays of a safetensors file, by name."""
  data = np.memmap(path, np.uint8, mode='r')
  begin = 8 + int.from_bytes(data[:8].tobytes(), 'little')
  header = json.loads(data[8:begin].tobytes())
  header.pop('__metadata__', None)
  return {
    name: data[begin:][slice(*array['data_offsets'])]
    .view(np.float32)
    .reshape(array['shape'])
    for name, array in header.items()
  }
