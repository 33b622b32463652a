"""What a step computes and sends, counted in the program that JAX traces."""

import collections
import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, jaxprs_in_params
from jaxtyping import Float, Int

from adaptssr_jax.buckets import Buckets

# What one of n devices sends of its operand, in a ring.
_SENT = {
  'all_gather': lambda n: n - 1,
  'all_to_all': lambda n: (n - 1) / n,
  'ppermute': lambda n: 1,
  'psum': lambda n: 2 * (n - 1) / n,
  'pmax': lambda n: 2 * (n - 1) / n,
  'pmin': lambda n: 2 * (n - 1) / n,
  'reduce_scatter': lambda n: (n - 1) / n,
}


class Work(NamedTuple):
  """What one device does in a step.

  Args:
    flops: operations of its matrix products; a multiplication and an addition
      are 2.
    sent: bytes that it sends to other devices, by the kind of the collective.
  """

  flops: float
  sent: Mapping[str, float]


def work_of(
  jaxpr: ClosedJaxpr | Jaxpr,
  *,
  devices: int,
  shares: Float[np.ndarray, 'programs'] | None = None,
) -> Work:
  """Counts the matrix products and the collectives of a traced step.

  A product [b, m, k] x [b, k, n] counts 2 b m n k, the body of a loop as often
  as it runs, and what the gradient computes again once more. XLA's
  `cost_analysis` takes each body, and each branch of a switch, once.

  Args:
    jaxpr: of the step.
    devices: that share the batch.
    shares: how often each branch of a switch of so many is taken. Without it,
      or of another number, the branch with the most operations counts.

  Returns:
    The work of one device.

  Example:
    >>> def loop(matrix):
    ...   return jax.lax.fori_loop(0, 5, lambda _, x: x @ x, matrix)
    >>> traced = jax.make_jaxpr(loop)(np.ones((10, 10)))
    >>> work_of(traced, devices=1).flops
    10000.0
  """
  flops, sent = 0.0, collections.Counter()
  for eqn in getattr(jaxpr, 'jaxpr', jaxpr).eqns:
    # As some collectives are named that shard_map checks.
    name = eqn.primitive.name.removesuffix('_invariant')
    inner = [
      work_of(body, devices=devices, shares=shares)
      for body in jaxprs_in_params(eqn.params)
    ]
    weights = _weights(name, eqn, inner, shares)
    for work, weight in zip(inner, weights, strict=True):
      flops += weight * work.flops
      for kind, size in work.sent.items():
        sent[kind] += weight * size
    if name == 'dot_general':
      flops += _product(eqn)
    if name in _SENT and devices > 1:
      size = sum(_bytes(variable.aval) for variable in eqn.invars)
      sent[name] += size * _SENT[name](devices)
  return Work(flops, dict(sent))


def _weights(
  name: str,
  eqn: JaxprEqn,
  inner: list[Work],
  shares: Float[np.ndarray, 'programs'] | None,
) -> list[float]:
  """How often each program inside of an equation runs."""
  if name == 'scan':
    return [float(eqn.params['length'])] * len(inner)
  if name != 'cond':
    return [1.0] * len(inner)
  if shares is not None and len(shares) == len(inner):
    return shares.tolist()
  most = int(np.argmax([work.flops for work in inner]))
  return [float(branch == most) for branch in range(len(inner))]


def _product(eqn: JaxprEqn) -> float:
  (contracted, _), _ = eqn.params['dimension_numbers']
  left, result = eqn.invars[0].aval, eqn.outvars[0].aval
  length = math.prod(left.shape[axis] for axis in contracted)
  return 2.0 * length * math.prod(result.shape)


def _bytes(aval: jax.core.AbstractValue) -> int:
  return math.prod(aval.shape) * aval.dtype.itemsize


def program_shares(
  lengths: Int[np.ndarray, 'sequences'],
  *,
  rows: int,
  buckets: Buckets,
  length: int,
  batches: int = 100,
) -> Float[np.ndarray, 'programs']:
  """How often `in_buckets` encodes a group of sequences at each width.

  Args:
    lengths: of sequences as they are encoded, of which batches are drawn.
    rows: sequences of a batch on one device.
    buckets: in which parts they are encoded.
    length: to which they are padded before.
    batches: how many are drawn.

  Returns:
    A share for each width, the last one that of the full length.

  Example:
    >>> buckets = Buckets(widths=(4,), size=1)
    >>> lengths = np.array([3, 3, 3, 9])
    >>> program_shares(lengths, rows=4, buckets=buckets, length=9).round(1)
    array([0.7, 0.3])
  """
  widths = [*(width for width in buckets.widths if width < length), length]
  size = min(buckets.size or rows, rows)
  drawn = np.random.default_rng(0).choice(lengths, (batches, rows))
  last = np.minimum(np.arange(0, rows, size) + size, rows) - 1
  longest = np.sort(drawn, axis=1)[:, last]
  which = np.searchsorted(widths, longest.reshape(-1))
  return np.bincount(which, minlength=len(widths)) / len(which)
