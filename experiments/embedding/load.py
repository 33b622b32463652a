"""Encodes users by the encoder of this folder: raw item ids in, vectors out.

It needs jax, numpy, and flatbuffers, which `jax.export` uses to read. It does
not need the code that trained the encoder:

  encoder = Encoder()
  vectors = encoder([['item 3', 'item 7'], []])

The encoder is compiled once for each shape of its input. Both the number of
users and the length are padded to powers of two, so that there are few shapes.
"""

import itertools
import json
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from jax import export

# Encoded at a time.
_MOST_WINDOWS = 1024


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
    self.history = settings.get('history', 'last')
    items = (folder / 'vocabulary').read_text().splitlines()
    self.numbers = {json.loads(item): i for i, item in enumerate(items, 1)}
    self.weights = jax.device_put(read_weights(folder / 'weights.safetensors'))
    artefact = bytearray((folder / 'encoder.jaxexport').read_bytes())
    self.encode = jax.jit(export.deserialize(artefact).call)

  def __call__(self, histories: Sequence[Sequence[str]]) -> np.ndarray:
    """Encodes users.

    Args:
      histories: the raw item ids of each user, oldest first. Of a longer one,
        only the last `max_length` are used; if the encoder was exported with
        --history=whole, the vector is the mean over windows of all of them. An
        unknown item is treated as a masked item.

    Returns:
      float32 [users, dim]; zeros for a user without items.

    Raises:
      TypeError: a history is not a list of strings.
    """
    unknown, windows, counts = len(self.numbers) + 1, [], []
    for history in histories:
      if (
        isinstance(history, str)
        or not np.iterable(history)
        or not all(isinstance(item, str) for item in history)
      ):
        raise TypeError(f'a history is a list of raw item ids, not {history!r}')
      part = self.encoded_part(history)
      items = [self.numbers.get(item, unknown) for item in part]
      count = max(-(-len(items) // self.max_length), 1)
      ends = [len(items) * window // count for window in range(count + 1)]
      windows += [items[i:j] for i, j in itertools.pairwise(ends)]
      counts.append(count)
    vectors = np.concatenate(
      [
        self.encode_windows(windows[begin : begin + _MOST_WINDOWS])
        for begin in range(0, max(len(windows), 1), _MOST_WINDOWS)
      ]
    )
    if len(windows) == len(counts):
      return vectors
    weights = np.array([[max(len(w), 1)] for w in windows], np.float32)
    begins = np.cumsum(counts) - counts
    totals = np.add.reduceat(weights, begins)
    return np.add.reduceat(weights * vectors, begins) / totals

  def encoded_part(self, history: Sequence[str]) -> Sequence[str]:
    """The behaviours of a history that are encoded."""
    begin = 0 if self.history == 'whole' else -self.max_length
    # A generator cannot be sliced, and the check before has read it.
    return history[begin:]

  def encode_windows(self, windows: Sequence[Sequence[int]]) -> np.ndarray:
    """The vectors of windows of item numbers, float32 [windows, dim]."""
    longest = max(map(len, windows), default=0)
    number, length = (
      1 << max(n - 1, 0).bit_length() for n in (len(windows), longest)
    )
    items = np.zeros((number, min(length, self.max_length)), np.int32)
    for padded, window in zip(items, windows, strict=False):
      padded[: len(window)] = window
    return np.asarray(self.encode(self.weights, items))[: len(windows)]


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
