"""The softmax over all items, over parts of them, and over a sample."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from adaptssr_jax.ops.item_softmax import softmax_losses_and_best
from adaptssr_jax.ops.sampled_softmax import distinct, sampled_softmax_losses

# 21 ids on 8 devices: 3 per device, with 3 padding rows in all.
ROWS, IDS, DIM, LABELS = 16, 21, 3, 4
# An id that is not a class, as padding is none in some softmaxes.
NO_CLASS = 5
WEIGHTS = np.arange(1.0, ROWS + 1)


def random_inputs(seed=0, dtype=np.float32):
  """Rows of 0 to 4 labels, in any order; some of them occur twice."""
  rng = np.random.default_rng(seed)
  hidden, table = rng.normal(size=(ROWS, DIM)), rng.normal(size=(IDS, DIM))
  bias = rng.normal(size=IDS)
  bias[NO_CLASS] = np.finfo(dtype).min
  classes = np.delete(np.arange(IDS), NO_CLASS)
  labels = rng.choice(classes, (ROWS, LABELS))
  labels[1, :2], labels[2, :3] = [0, IDS - 1], [7, 7, 8]
  where = np.arange(LABELS) < rng.permutation(ROWS)[:, None] % (LABELS + 1)
  where[1], where[2] = [True, True, False, False], [True, True, True, False]
  return *(x.astype(dtype) for x in (hidden, table, bias)), labels, where


def loop(hidden, table, bias, labels, where):
  """The oracle: losses and gradients of their weighted sum, row by row."""
  hidden, table, bias = (np.asarray(x, float) for x in (hidden, table, bias))
  losses, best = np.zeros(len(hidden)), []
  gradients = [np.zeros_like(x) for x in (hidden, table, bias)]
  for row, h in enumerate(hidden):
    scores = np.array([h @ e + b for e, b in zip(table, bias, strict=True)])
    best.append(np.argmax(scores))
    wanted = labels[row][where[row]]
    if not len(wanted):
      continue
    losses[row] = special.logsumexp(scores) - scores[wanted].mean()
    shares = np.bincount(wanted, minlength=len(bias)) / len(wanted)
    errors = WEIGHTS[row] * (special.softmax(scores) - shares)
    gradients[0][row] = errors @ table
    gradients[1] += errors[:, None] * h
    gradients[2] += errors
  return losses, best, gradients


def losses_of(hidden, table, bias, labels, where, **parts):
  losses, _ = softmax_losses_and_best(
    hidden, table, bias, labels, where=where, **parts
  )
  return losses


def weighted(hidden, table, bias, labels, where, chunk_size=None, group=None):
  losses, best = softmax_losses_and_best(
    hidden,
    table,
    bias,
    labels,
    where=where,
    chunk_size=chunk_size,
    group_size=group,
  )
  return losses @ jnp.arange(1.0, len(losses) + 1), (losses, best)


@functools.partial(jax.jit, static_argnums=(5, 6))
def compiled(*inputs):
  return jax.value_and_grad(weighted, (0, 1, 2), has_aux=True)(*inputs)


# All ids at once, one id at a time, chunks that overlap, and a single chunk;
# groups of one row, groups of which the last is not full, and one group of all.
@pytest.mark.parametrize(
  ('chunk_size', 'group_size'),
  [
    (None, None),
    (1, None),
    (4, None),
    (30, None),
    (None, 5),
    (1, 2),
    (4, 5),
    (4, 100),
    (100, 5),
  ],
)
def test_values_and_gradients_are_those_of_a_loop(chunk_size, group_size):
  inputs = random_inputs(dtype=np.float64)
  losses, best, gradients = loop(*inputs)
  assert 0 < np.count_nonzero(losses) < ROWS - 1
  with jax.enable_x64(True):
    (_, results), found = compiled(
      *map(jnp.asarray, inputs), chunk_size, group_size
    )
  np.testing.assert_allclose(results[0], losses, rtol=1e-12)
  # Rows without labels may be left out of groups.
  counts = losses != 0 if group_size else np.ones(ROWS, bool)
  np.testing.assert_array_equal(results[1][counts], np.array(best)[counts])
  for gradient, expected in zip(found, gradients, strict=True):
    np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-12)
  assert not found[1][NO_CLASS].any()


def test_groups_without_labels_are_not_scored():
  hidden, table, bias, labels, where = random_inputs()
  real = where.any(axis=1)[:, None]
  # The scores of these rows would be nan.
  hidden = np.where(real, hidden, np.inf)
  found = jax.jit(functools.partial(losses_of, group_size=1))(
    hidden, table, bias, labels, where
  )
  np.testing.assert_allclose(found, loop(*random_inputs())[0], rtol=1e-5)


def test_float32_of_any_float():
  hidden, *others = random_inputs()
  inputs = jnp.bfloat16(hidden), *others
  losses, best = jax.jit(softmax_losses_and_best, static_argnames='chunk_size')(
    *inputs[:4], where=inputs[4], chunk_size=4
  )
  assert losses.dtype == jnp.float32
  assert best.dtype == jax.dtypes.canonicalize_dtype(inputs[3].dtype)
  np.testing.assert_allclose(losses, loop(*inputs)[0], rtol=1e-5)


@pytest.mark.parametrize('chunk_size', [None, 4])
def test_extreme_scores(chunk_size):
  # Scores are 1e4 times 0..10 down, and up.
  hidden = jnp.array([[-1e4], [1e4], [1e4]])
  table = jnp.arange(11.0)[:, None]
  labels, where = jnp.array([[0], [10], [9]]), jnp.ones((3, 1), bool)
  (_, results), gradients = compiled(
    hidden, table, jnp.zeros(11), labels, where, chunk_size
  )
  np.testing.assert_array_equal(results[0], [0, 0, 1e4])
  np.testing.assert_array_equal(results[1], [0, 10, 10])
  # Only the last row, of weight 3, is wrong: it predicts 10, its label is 9.
  np.testing.assert_array_equal(gradients[0], [[0], [0], [3]])
  np.testing.assert_array_equal(gradients[2], [0] * 9 + [-3, 3])


@pytest.mark.parametrize('chunk_size', [None, 1, 4])
def test_of_equal_scores_the_first_is_best(chunk_size):
  bias = jnp.array([0.0, 2.0, 2.0, 1.0, 0.0, 2.0])
  labels, where = jnp.array([[0], [5]]), jnp.ones((2, 1), bool)
  (_, (_, best)), _ = compiled(
    jnp.zeros((2, 1)), jnp.ones((6, 1)), bias, labels, where, chunk_size
  )
  np.testing.assert_array_equal(best, [1, 1])


def test_an_item_that_is_never_right_may_have_a_bias_of_minus_infinity():
  hidden, table, bias, labels, where = random_inputs()
  # All ids of the second chunk, too.
  bias[[3, 4, 5, 6, 7]] = -np.inf
  labels = np.where((labels < 3) | (labels > 7), labels, 0)
  inputs = hidden, table, bias, labels, where
  (_, plain), expected = compiled(*inputs)
  (_, chunked), gradients = compiled(*inputs, 4)
  np.testing.assert_allclose(chunked[0], plain[0], rtol=1e-5)
  for gradient, other in zip(gradients, expected, strict=True):
    np.testing.assert_allclose(gradient, other, atol=1e-5)


@pytest.mark.parametrize('chunk_size', [None, 4])
def test_no_rows_have_no_losses(chunk_size):
  hidden, table, bias, labels, where = random_inputs()
  (_, results), gradients = compiled(
    hidden[:0], table, bias, labels[:0], where[:0], chunk_size
  )
  assert results[0].shape == results[1].shape == (0,)
  np.testing.assert_array_equal(gradients[1], np.zeros((IDS, DIM)))


def test_vmap_is_a_loop():
  batches = [random_inputs(seed) for seed in range(2)]
  stacked = [jnp.array(x) for x in zip(*batches, strict=True)]
  mapped = jax.vmap(functools.partial(losses_of, chunk_size=4))
  expected = [loop(*inputs)[0] for inputs in batches]
  np.testing.assert_allclose(jax.jit(mapped)(*stacked), expected, rtol=1e-5)


@pytest.mark.parametrize(
  ('group_size', 'check_vma'), [(None, True), (None, False), (1, True)]
)
def test_devices_share_the_table_and_split_the_rows(group_size, check_vma):
  inputs = random_inputs()
  rows, whole = jax.P('devices'), jax.P()
  mapped = jax.shard_map(
    functools.partial(losses_of, chunk_size=4, group_size=group_size),
    mesh=jax.make_mesh((8,), ('devices',), (jax.sharding.AxisType.Auto,)),
    in_specs=(rows, whole, whole, rows, rows),
    out_specs=rows,
    check_vma=check_vma,
  )
  gradient = jax.jit(
    jax.grad(lambda *x: mapped(*x, *inputs[3:]) @ WEIGHTS, (0, 1, 2))
  )
  for found, expected in zip(
    gradient(*inputs[:3]), loop(*inputs)[2], strict=True
  ):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
  ('chunk_size', 'group_size'), [(None, None), (2, None), (2, 3)]
)
def test_a_sharded_table_gives_the_same(chunk_size, group_size):
  hidden, table, bias, labels, where = random_inputs()
  # Equal scores on two devices: the first of them is the best.
  table[[4, 17]], bias[[4, 17]] = 4, 4
  expected, wanted, gradients = loop(hidden, table, bias, labels, where)

  def on_device(shard, bias, hidden, labels, where, weights):
    def total(hidden, shard, bias):
      losses, best = softmax_losses_and_best(
        hidden,
        shard,
        bias,
        labels,
        where=where,
        chunk_size=chunk_size,
        group_size=group_size,
        axis_name='devices',
      )
      return losses @ weights, (losses, best)

    gradient = jax.grad(total, (0, 1, 2), has_aux=True)
    (*own, of_bias), found = gradient(hidden, shard, bias)
    return *own, jax.lax.psum(of_bias, 'devices'), *found

  shards = np.pad(table, ((0, 3), (0, 0))).reshape(8, 3, DIM)
  rows = hidden, labels, where, WEIGHTS.astype(np.float32)
  by_device = [x.reshape(8, ROWS // 8, *x.shape[1:]) for x in rows]
  mapped = jax.pmap(on_device, 'devices', in_axes=(0, None, 0, 0, 0, 0))
  *found, of_bias, losses, best = mapped(shards, bias, *by_device)
  np.testing.assert_allclose(losses.reshape(-1), expected, rtol=1e-5)
  counts = expected != 0 if group_size else np.ones(ROWS, bool)
  np.testing.assert_array_equal(
    best.reshape(-1)[counts], np.array(wanted)[counts]
  )
  found = *(x.reshape(-1, DIM) for x in found), of_bias[0]
  for gradient, other in zip(found, gradients, strict=True):
    np.testing.assert_allclose(
      gradient[: len(other)], other, atol=1e-5 * np.abs(other).max()
    )


@pytest.mark.parametrize('name', ['chunk_size', 'group_size'])
@pytest.mark.parametrize('size', [0, -4])
def test_refuses_parts_of_nothing(name, size):
  with pytest.raises(ValueError, match=f'{name} must be at least 1 or None'):
    losses_of(*map(jnp.asarray, random_inputs()), **{name: size})


# Sampled.


def sampled_losses(sampled, hidden, table, bias, labels, where):
  return sampled_softmax_losses(
    sampled, hidden, table, bias, labels, where=where
  )


def drawn(key, num_sampled):
  return jax.random.randint(key, (num_sampled,), 0, IDS)


def inputs_of_samples():
  """Of which all ids are classes, as all of them may be drawn."""
  hidden, table, bias, labels, where = random_inputs()
  return hidden, table, np.where(bias < -9, 0, bias), labels, where


def test_a_large_sample_has_the_loss_and_gradients_of_all():
  *arrays, labels, where = inputs_of_samples()
  ids = drawn(jax.random.key(1), 200_000)

  def total(*arrays):
    losses = sampled_losses(ids, *arrays, labels, where)
    return losses @ WEIGHTS, losses

  gradient = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))
  found_gradients, losses = gradient(*arrays)
  expected, _, gradients = loop(*arrays, labels, where)
  np.testing.assert_allclose(losses, expected, atol=0.02)
  for found, other in zip(found_gradients, gradients, strict=True):
    np.testing.assert_allclose(found, other, atol=0.03 * np.abs(other).max())


def test_the_table_may_be_a_function():
  hidden, table, *others = inputs_of_samples()
  ids = drawn(jax.random.key(0), 2)
  few = jax.jit(sampled_losses)(ids, hidden, table, *others)
  look_up = jnp.asarray(table).__getitem__
  looked_up = jax.jit(
    lambda hidden, *others: sampled_losses(ids, hidden, look_up, *others)
  )
  np.testing.assert_array_equal(looked_up(hidden, *others), few)
  assert np.abs(few - loop(hidden, table, *others)[0]).max() > 0.3


def test_the_estimate_of_the_denominator_is_unbiased():
  inputs = inputs_of_samples()
  keys = jax.random.split(jax.random.key(2), 4000)
  draws = jax.jit(jax.vmap(lambda key: sampled_losses(drawn(key, 3), *inputs)))(
    keys
  )
  # The sum of all e^z, but for a factor that is the same for each draw: of the
  # exact loss, and of each draw.
  ratios = np.exp(np.float64(draws))
  error = ratios.std(axis=0) / np.sqrt(len(keys))
  exact = np.exp(loop(*inputs)[0])
  assert np.all(np.abs(ratios.mean(axis=0) - exact) <= 4 * error)
  # A sample that is the label adds 1 to the ratio unless it is removed, which
  # exceeds the error bound of some rows.
  assert np.min(4 * error[exact > 1]) < 0.5


def test_the_label_counts_once():
  # With one id, all samples are the label and are removed: the loss is 0.
  table = jnp.full((1, 2), 3.0)
  gradient = jax.value_and_grad(
    lambda table: sampled_losses(
      jnp.zeros(5, jnp.int32),
      jnp.ones((4, 2)),
      table,
      jnp.zeros(1),
      jnp.zeros((4, 1), jnp.int32),
      jnp.ones((4, 1), bool),
    ).sum()
  )
  value, found = jax.jit(gradient)(table)
  assert value == 0
  np.testing.assert_array_equal(found, [[0, 0]])


def test_a_sample_of_extreme_scores_has_finite_gradients():
  hidden = jnp.array([[1e4], [-1e4]])
  ids, labels = drawn(jax.random.key(0), 30), jnp.array([[0], [IDS - 1]])
  gradient = jax.grad(
    lambda *x: sampled_losses(ids, *x, labels, labels >= 0).sum(), (0, 1, 2)
  )
  found = jax.jit(gradient)(
    hidden, jnp.arange(float(IDS))[:, None], jnp.zeros(IDS)
  )
  assert all(np.all(np.isfinite(leaf)) for leaf in found)


def test_distinct_marks_repeated_items_once():
  items = jnp.array([[3, 3, 5, 3, 0, 0], [0] * 6, [9, 8, 7, 9, 8, 7]])
  assert distinct(items).tolist() == [
    [True, False, True, False, False, False],
    [False] * 6,
    [True, True, True, False, False, False],
  ]


@pytest.mark.parametrize('is_sampled', [False, True])
def test_a_repeated_label_is_one_class_of_twice_the_weight(is_sampled):
  # Two ids with scores 0 and 2; two of the three labels are the second id.
  arrays = jnp.array([[1.0]]), jnp.array([[0.0], [2.0]]), jnp.zeros(2)
  labels = jnp.array([[1, 0, 1, 0]])
  where = jnp.array([[True, True, True, False]])
  function = losses_of
  if is_sampled:
    # All samples are labels, so that the sum is over these two for any sample.
    function = functools.partial(sampled_softmax_losses, jnp.array([0, 1, 1]))
  found = jax.jit(function)(*arrays, labels, where=where)
  expected = np.log(1 + np.exp(2)) - (2 * 2 + 0) / 3
  np.testing.assert_allclose(found, expected, rtol=1e-6)
