"""Counts the operations of a traced step, and the bytes that it sends."""

import collections
import math
from collections.abc import Mapping

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, jaxprs_in_params
from jaxtyping import Float, Int

from adaptssr_jax.table.exchange import OVERFLOW
from experiments.planning.hlo import Program
from experiments.run.steps import Sequences

# Batches, and sequences in all, drawn at most to sample the lengths in a batch.
_BATCHES = 100
_MOST_DRAWN = 10_000_000
# Bytes that one of n devices in a ring sends for each byte of its result.
_SENT = {
  'all-gather': lambda n: (n - 1) / n,
  'all-to-all': lambda n: (n - 1) / n,
  'collective-permute': lambda n: 1,
  'all-reduce': lambda n: 2 * (n - 1) / n,
  'reduce-scatter': lambda n: n - 1,
}


def flops_of(
  jaxpr: ClosedJaxpr | Jaxpr,
  *,
  shares: Float[np.ndarray, 'programs'] | None = None,
) -> float:
  """Counts the operations of the matrix products of a traced step.

  A product [b, m, k] x [b, k, n] takes 2 b m n k operations. The body of a loop
  is counted as often as it runs, and what the gradient computes again is
  counted again. In contrast, XLA's `cost_analysis` counts each body of a loop,
  and each branch of a switch, once.

  Args:
    shares: the probability of each branch, for switches with this number of
      branches. Without it, and for other switches, the branch with the most
      operations is counted.

  Returns:
    The operations of one device; a multiplication and an addition are 2.

  Example:
    >>> import jax
    >>> def loop(matrix):
    ...   return jax.lax.fori_loop(0, 5, lambda _, x: x @ x, matrix)
    >>> flops_of(jax.make_jaxpr(loop)(np.ones((10, 10))))
    10000.0
  """
  flops = 0.0
  for eqn in getattr(jaxpr, 'jaxpr', jaxpr).eqns:
    inner = [
      flops_of(body, shares=shares) for body in jaxprs_in_params(eqn.params)
    ]
    flops += float(np.dot(_weights(eqn, inner, shares), inner))
    if eqn.primitive.name == 'dot_general':
      flops += _product(eqn)
  return flops


def sent_of(program: str, *, devices: int) -> Mapping[str, float]:
  """Counts the bytes that a device sends in a step, by kind of collective.

  Args:
    program: the text of a compiled step. A collective in a loop is counted
      once, since training has none in loops. What is sent only if one device is
      asked for too many rows, see `table.exchange`, is not counted.
    devices: number of devices, which form a ring.
  """
  sent = collections.Counter()
  if devices > 1:
    lines = [line for line in program.splitlines() if OVERFLOW not in line]
    for operation in Program('\n'.join(lines)).operations.values():
      kind, size = operation.opcode.removesuffix('-start'), operation.size
      if kind not in _SENT:
        continue
      # The result of an asynchronous start also holds its operand.
      if operation.opcode == 'all-gather-start':
        size *= devices / (devices + 1)
      elif operation.opcode == 'collective-permute-start':
        size /= 2
      sent[kind] += size * _SENT[kind](devices)
  return dict(sent)


def _weights(
  eqn: JaxprEqn,
  inner: list[float],
  shares: Float[np.ndarray, 'programs'] | None,
) -> list[float]:
  """How often each program inside an equation runs."""
  name = eqn.primitive.name
  if name == 'scan':
    return [float(eqn.params['length'])] * len(inner)
  if name != 'cond':
    return [1.0] * len(inner)
  if shares is not None and len(shares) == len(inner):
    return shares.tolist()
  most = int(np.argmax(inner))
  return [float(branch == most) for branch in range(len(inner))]


def _product(eqn: JaxprEqn) -> float:
  (contracted, _), _ = eqn.params['dimension_numbers']
  left, result = eqn.invars[0].aval, eqn.outvars[0].aval
  length = math.prod(left.shape[axis] for axis in contracted)
  return 2.0 * length * math.prod(result.shape)


def program_shares(
  sequences: Sequences, *, users: int
) -> Float[np.ndarray, 'programs']:
  """Estimates how often `in_buckets` encodes a group at each of its widths.

  Args:
    sequences: the sequences of a step. Batches are drawn from their lengths at
      random, always the same ones.
    users: number of users of a batch on one device.

  Returns:
    The share of groups for each width; the last width is the full length.

  Example:
    >>> from adaptssr_jax.ops.buckets import Buckets
    >>> buckets = Buckets(widths=(4,), size=1)
    >>> sequences = Sequences(9, np.array([3, 3, 3, 9]), buckets)
    >>> program_shares(sequences, users=4).round(1)
    array([0.7, 0.3])
  """
  longest = np.sort(_draw(sequences, users), axis=1)
  rows, size = longest.shape[1], sequences.buckets.size
  size = min(size or rows, rows)
  last = np.minimum(np.arange(0, rows, size) + size, rows) - 1
  widths = _widths(sequences)
  which = np.searchsorted(widths, longest[:, last].reshape(-1))
  return np.bincount(which, minlength=len(widths)) / len(which)


def padding_share(sequences: Sequences, *, users: int) -> float:
  """Estimates the share of padding among the positions that are encoded.

  Args: as of `program_shares`.

  Example:
    >>> from adaptssr_jax.ops.buckets import Buckets
    >>> sequences = Sequences(9, np.array([3]), Buckets(widths=(4,), size=1))
    >>> padding_share(sequences, users=2)
    0.25
  """
  shares = program_shares(sequences, users=users)
  encoded = shares @ np.array(_widths(sequences))
  return 1 - float(_draw(sequences, users).mean() / encoded)


def _draw(sequences: Sequences, users: int) -> Int[np.ndarray, 'batches rows']:
  """The lengths in random batches, the same ones at each call."""
  rows = sequences.per_user * users
  batches = max(min(_BATCHES, _MOST_DRAWN // rows), 1)
  rng = np.random.default_rng(0)
  drawn = rng.choice(sequences.lengths, (batches, rows))
  return np.minimum(drawn, sequences.length)


def _widths(sequences: Sequences) -> list[int]:
  """The widths to which `in_buckets` may cut a batch of these sequences."""
  widths, length = sequences.buckets.widths, sequences.length
  return [*(width for width in widths if width < length), length]
