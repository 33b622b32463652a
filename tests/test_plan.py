"""`--plan` equals the cost of the run, and leaves no files."""

import contextlib
import dataclasses
import functools
import io
import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.ops.buckets import AT_ONCE, Buckets, in_buckets
from adaptssr_jax.training.devices import AXIS
from adaptssr_jax.training.step import pmap_step
from experiments import finetune, pretrain
from experiments.benchmarking.work import encoding_flops, step_flops
from experiments.flags.binder import SettingsError
from experiments.planning.counting import (
  flops_of,
  padding_share,
  program_shares,
  sent_of,
)
from experiments.planning.plan import shapes_of, size_text
from experiments.run.steps import Sequences
from tests.tiny_runs import (
  ROOT,
  files,
  finetune_settings,
  pretrain_settings,
)


def bytes_of(tree):
  return sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(tree))


def encoder_of(plan, settings):
  names = ('max_length', 'embed_dim', 'num_layers')
  return UserEncoder(plan.items, **{n: getattr(settings, n) for n in names})


@pytest.fixture(scope='module')
def run(pretrained):
  """A run of pre-training: its settings and its last state."""
  return pretrained, pretrain.main(pretrained)


@pytest.fixture(scope='module')
def planned(run):
  """A plan of the same run, its output, and the files of before the plan."""
  settings, _ = run
  before = files(settings.data_dir)
  aside = settings.workdir + '_planned'
  settings = dataclasses.replace(settings, workdir=aside, plan=True)
  with contextlib.redirect_stdout(io.StringIO()) as printed:
    plan = pretrain.main(settings)
  return plan, printed.getvalue(), before


def test_a_plan_leaves_no_files(run, planned):
  settings, _ = run
  assert not os.path.exists(settings.workdir + '_planned')
  assert files(settings.data_dir) == planned[-1]


def test_a_plan_has_the_sizes_of_the_run(run, planned):
  settings, state = run
  plan, *_ = planned
  table = state.params['table']
  leaves = jax.tree.leaves(state.params)
  count = sum(leaf.size for leaf in leaves)
  assert plan.parameters == (count, bytes_of(state.params))
  assert plan.table == (table.size, table.nbytes)
  assert plan.optimizer.bytes == bytes_of(state.opt_state)
  assert plan.devices == jax.device_count() == 8
  assert plan.batch_size == settings.batch_size
  # 180 users, 64 in a step.
  assert (plan.users, plan.steps_per_epoch, plan.num_steps) == (180, 3, 9)


def test_a_plan_has_the_sizes_of_the_data(run, planned):
  settings, _ = run
  plan, *_ = planned
  data = pretrain.open_data(settings, task='pretrain')
  users, names = data.splits['train'].items, data.vocabulary.items
  assert plan.items == len(names)
  assert plan.behaviours == len(users.values)
  folder = os.path.join(settings.data_dir, data.name)
  assert plan.data_on_disk == sum(map(len, files(folder).values()))
  # Offsets of users and of their ids in two splits, two orders, and the names.
  offsets = sum(2 * (len(part.items) + 1) for part in data.splits.values())
  names = sum(8 + sys.getsizeof(name) for name in names)
  assert plan.data_in_memory == 8 * (offsets + 2 * len(users)) + names


def test_memory_is_that_of_a_device(run, planned):
  settings, state = run
  plan, *_ = planned
  # The items, masks and ids of 8 of the 64 users, and a key.
  users = 8 * (4 * settings.max_length + 1 + 4)
  assert plan.arguments == pytest.approx(bytes_of(state) + users + 8, rel=1e-3)
  # The new state reuses the memory of the old one; metrics are a few numbers.
  assert 0 < plan.results < 1024
  assert plan.temporaries > bytes_of(state.params)
  assert plan.peak == plan.arguments + plan.results + plan.temporaries


def test_operations_equal_those_counted_by_hand(run, planned):
  settings, _ = run
  plan, *_ = planned
  encoder = encoder_of(plan, settings)
  # Without buckets all sequences are as long as the longest.
  lengths = np.array([settings.max_length])
  by_hand = step_flops(lengths, users=settings.batch_size, encoder=encoder)
  # Logged similarities take products as large as those of the loss.
  by_hand += 16 * settings.batch_size**2 * settings.embed_dim
  assert plan.flops == plan.most_flops
  assert plan.flops == pytest.approx(by_hand, rel=0.01)


def test_bytes_sent_equal_those_counted_by_hand(run, planned):
  settings, state = run
  plan, *_ = planned
  # In a ring of 8 devices: gradients and a few sums, reduced and gathered.
  reduced = bytes_of(state.params) * 2 * 7 / 8
  assert plan.sent['all-reduce'] == pytest.approx(reduced, rel=0.05)
  # For the 8 users of a device: 4 vectors, a mask and one number.
  vectors = 4 * 8 * 4 * settings.embed_dim
  assert plan.sent['all-gather'] == 7 * (vectors + 8 * (4 + 1))
  assert plan.sent['reduce-scatter'] == 7 * (vectors + 8 * 4)


def test_the_table_is_printed(planned):
  plan, text, _ = planned
  assert text.count('\n') > 30
  counts = (plan.users, plan.behaviours, plan.items, plan.parameters.count)
  for number in counts:
    assert f' {number:,}' in text
  for size in (plan.peak, plan.temporaries, plan.optimizer.bytes):
    assert f' {size_text(size)}\n' in text


def test_masked_items_and_buckets_are_counted_by_hand(tmp_path, data_dir):
  settings = pretrain_settings(
    tmp_path / 'run',
    data_dir,
    plan=True,
    objective=('masked_items',),
    mask_ratio=0.5,
    plan_items=5000,
    buckets=2,
    microbatch=16,
  )
  plan = pretrain.main(settings)
  assert plan.items == 5000
  assert plan.table.count == 5002 * 8
  encoder = encoder_of(plan, settings)
  products = encoding_flops(np.array(6), encoder) - 4 * 6 * 8
  # Sequences are encoded again for the gradient; 3 of 6 items are masked.
  most = 64 * (4 * products + 3 * 2 * 3 * 5001 * 8)
  assert plan.most_flops == pytest.approx(most, rel=0.01)
  assert 0.8 * most < plan.flops <= plan.most_flops


def test_each_device_has_a_part_of_a_sharded_table(planned, run):
  settings, state = run
  whole, *_ = planned
  # Augmentations send nothing, and a single one compiles fast.
  settings = dataclasses.replace(
    settings, plan=True, shard_table=True, augmentations=('mask',)
  )
  plan = pretrain.main(settings)
  table = state.params['table'].nbytes
  # Each of 8 devices has an eighth of the table and of its moments, rounded up
  # to whole rows.
  spared = 3 * table * 7 / 8
  assert plan.arguments == pytest.approx(whole.arguments - spared, abs=128)
  # Rows and their gradients are exchanged, and the table is not reduced.
  assert plan.sent['all-reduce'] < whole.sent['all-reduce'] - table
  assert plan.sent['all-to-all'] > 0
  assert plan.sent['reduce-scatter'] == whole.sent['reduce-scatter']


@pytest.mark.parametrize('mode', ['full', 'frozen'])
def test_fine_tuning_is_planned(tmp_path, data_dir, run, mode):
  settings = finetune_settings(
    tmp_path / 'run',
    data_dir,
    pretrained=run[0].workdir,
    mode=mode,
    plan=True,
  )
  plan = finetune.main(settings)
  assert not os.listdir(tmp_path)
  assert plan.table.count == run[1].params['table'].size
  assert (plan.users, plan.steps_per_epoch, plan.num_steps) == (120, 4, 12)
  head = 64 * (8 + 1) + 2 * (64 + 1)
  of_run = sum(leaf.size for leaf in jax.tree.leaves(run[1].params))
  assert plan.parameters.count == of_run + head
  # A frozen encoder has no moments.
  moments = head if mode == 'frozen' else plan.parameters.count
  assert plan.optimizer.bytes == 4 * (2 * moments + 1)
  # It has no gradients either: only those of the head and a few sums are sent.
  reduced = 4 * moments * 2 * 7 / 8
  assert plan.sent['all-reduce'] == pytest.approx(reduced, rel=0.05)


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'plan_devices': 5}, '--plan_devices=5: JAX has started with 8'),
    ({'plan_items': 9, 'init_from': 'runs/a'}, 'a start from runs/a'),
  ],
)
def test_plans_that_would_fail_are_refused(tmp_path, data_dir, changes, words):
  settings = pretrain_settings(tmp_path / 'run', data_dir, plan=True, **changes)
  with pytest.raises(SettingsError, match=words):
    pretrain.main(settings)


def test_a_probe_has_no_step_to_plan(tmp_path, data_dir):
  settings = finetune_settings(tmp_path, data_dir, plan=True, mode='probe')
  with pytest.raises(SettingsError, match='--mode=probe'):
    finetune.main(settings)


@pytest.mark.parametrize('name', ['plan_devices', 'plan_items'])
def test_flags_of_a_plan_need_a_plan(name):
  with pytest.raises(SettingsError, match=f'--{name} is for --plan'):
    pretrain.PretrainSettings(**{name: 8})


@pytest.mark.slow
def test_a_table_larger_than_the_machine_is_planned(tmp_path, data_dir):
  settings = pretrain_settings(
    tmp_path / 'run',
    data_dir,
    plan=True,
    plan_devices=32,
    plan_items=10**9,
    objective=('coles',),
    embed_dim=64,
    table_update='rows',
  )
  command = [sys.executable, '-m', 'experiments.pretrain']
  done = subprocess.run(
    [*command, *settings.to_flagfile().splitlines()],
    cwd=ROOT,
    env=os.environ | {'JAX_NUM_CPU_DEVICES': '2'},
    capture_output=True,
    text=True,
    check=True,
  )
  assert '32 simulated cpu devices' in done.stdout
  assert f'{(10**9 + 2) * 64:,}' in done.stdout
  assert not os.listdir(tmp_path)


def branching(state):
  state = lax.fori_loop(0, 5, lambda _, x: x @ x, state)
  return lax.switch(
    state.sum().astype(jnp.int32),
    [lambda x: x, lambda x: x @ x @ x, lambda x: x @ x],
    state,
  )


def test_loops_and_switches_are_counted():
  traced = jax.make_jaxpr(branching)(jnp.ones((10, 10)))
  assert flops_of(traced) == (5 + 2) * 2000
  shares = np.array([0.5, 0.25, 0.25])
  assert flops_of(traced, shares=shares) == (5 + 0.5 + 0.25) * 2000


def collective(x):
  return {
    'gathered': lax.all_gather(x, AXIS),
    'added': lax.psum(x[0], AXIS),
    'scattered': lax.psum_scatter(x[:, 1], AXIS),
    'turned': lax.all_to_all(x[:, 2], AXIS, 0, 0),
    'passed': lax.ppermute(x[0, 0], AXIS, [(i, (i + 1) % 8) for i in range(8)]),
  }


def test_collectives_are_counted():
  step = pmap_step(lambda state, x: (state, collective(x)))
  batch = jnp.ones((8, 8, 3))
  program = step.lower(jnp.ones(1), batch).compile().as_text()
  # Floats that each of 8 devices sends in a ring.
  floats = {
    'all-gather': 7 * 8 * 3,
    'all-reduce': 2 * 7 / 8 * 3,
    'reduce-scatter': 7,
    'all-to-all': 7,
    'collective-permute': 1,
  }
  expected = {name: 4 * count for name, count in floats.items()}
  assert sent_of(program, devices=8) == expected
  # An asynchronous collective is counted at its start.
  begun = '%a = (f32[3]{0}, f32[24]{0}) all-gather-start(%b), channel_id=1'
  assert sent_of(begun, devices=8) == {'all-gather': 7 * 12}
  assert not sent_of(program, devices=1)


def widths(items):
  return jnp.full(items.shape[0], items.shape[1], jnp.int32)


def test_shares_equal_those_of_the_widths_taken():
  lengths = np.array([1, 2, 2, 3, 5, 9])
  buckets = Buckets(widths=(2, 4), size=3)
  shares = program_shares(Sequences(9, lengths, buckets, 2), users=4)
  drawn = np.random.default_rng(0).choice(lengths, (100, 8))
  encode = jax.jit(functools.partial(in_buckets, widths, buckets=buckets))
  taken = []
  for batch in drawn:
    items = jnp.asarray(np.arange(9)[None] < batch[:, None], jnp.int32)
    found = np.sort(encode(items))
    taken += found[[0, 3, 6]].tolist()
  expected = [taken.count(width) / len(taken) for width in (2, 4, 9)]
  np.testing.assert_allclose(shares, expected)
  assert math.isclose(shares.sum(), 1)


def test_padding_share():
  def share(lengths, buckets):
    return padding_share(Sequences(8, np.array(lengths), buckets), users=4)

  assert share([2], AT_ONCE) == 0.75
  assert share([2], Buckets((2, 5), 2)) == 0
  assert share([3], Buckets((2, 5), 2)) == pytest.approx(0.4)
  # Sequences longer than the batch are cut to its length.
  assert share([11], Buckets((2, 5), 2)) == 0
  # Groups of 1 are cut to 2 or to 8; groups of 4 nearly always have length 8.
  assert share([2, 8], Buckets((2,), 1)) == pytest.approx(0)
  assert share([2, 8], Buckets((2,), 4)) > 0.25


def test_shapes_take_no_memory_and_other_results_are_returned():
  shape = jax.ShapeDtypeStruct((10**7, 10**7), jnp.float32)
  found = shapes_of(lambda x: ({'name': 'a', 'f': len}, {'x': x + 1}), shape)
  assert found == ({'name': 'a', 'f': len}, {'x': shape})
