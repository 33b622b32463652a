"""The parts of a step, as found in a compiled program."""

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmarking.parts import (
  part_of,
  rows_of,
  table_of,
  times_of,
)
from experiments.flags.binder import SettingsError
from experiments.planning.hlo import Program

WIDE = """
%fused (p0: f32[1000,8], p1: s32[2]) -> f32[2,8] {
  %p0 = f32[1000,8]{1,0} parameter(0)
  %p1 = s32[2]{0} parameter(1)
  %taken = f32[2,8]{1,0} gather(%p0, %p1), metadata={op_name="look_up/gather"}
  ROOT %scaled = f32[2,8]{1,0} multiply(%taken, %taken), metadata={op_name="x"}
}

ENTRY %main (table: f32[1000,8], ids: s32[2]) -> (f32[2,8], /*index=1*/u8[3]) {
  %table = f32[1000,8]{1,0} parameter(0)
  %ids = s32[2]{0} parameter(1)
  %fusion = f32[2,8]{1,0} fusion(%table, %ids), kind=kLoop, calls=%fused
  %all-reduce.1 = f32[2,8]{1,0} all-reduce(%fusion), metadata={op_name="loss/s"}
  %bytes = u8[3]{0} constant({1, 2, 3})
  ROOT %out = (f32[2,8], /*index=1*/u8[3]) tuple(%all-reduce.1, %bytes)
}
"""


GEMM = """
ENTRY %main (x: f32[4,2,3], y: f32[4,3,5]) -> f32[4,2,5] {
  %x = f32[4,2,3]{2,1,0} parameter(0)
  %y = f32[4,3,5]{2,1,0} parameter(1)
  %gemm = (f32[4,2,5]{2,1,0}, s8[4194304]{0}) custom-call(%x, %y), \
custom_call_target="__cublas$gemm", metadata={op_name="jit(f)/jvp(loss)/dot"}, \
backend_config={"gemm_backend_config":{"alpha_real":1,"beta":0,\
"dot_dimension_numbers":{"lhs_contracting_dimensions":["2"],\
"rhs_contracting_dimensions":["1"],"lhs_batch_dimensions":["0"],\
"rhs_batch_dimensions":["0"]}}}
  ROOT %out = f32[4,2,5]{2,1,0} get-tuple-element(%gemm), index=0
}
"""


@jax.jit
def product(x, y):
  with jax.named_scope('loss'):
    return jnp.tanh(x @ y)


def test_products_are_counted_as_the_compiler_does():
  x, y = jnp.ones((3, 5)), jnp.ones((5, 7))
  compiled = product.lower(x, y).compile()
  program = Program(compiled.as_text())
  counted = {
    name: program.flops(name)
    for names in program.computations.values()
    for name in names
    if program.operations[name].opcode == 'dot'
  }
  assert list(counted.values()) == [2 * 3 * 5 * 7]
  (name,) = counted
  assert program.bytes(name) == 4 * (3 * 5 + 5 * 7 + 3 * 7)
  assert part_of(program, name) == 'loss'


def test_products_of_a_library_are_counted_without_their_workspace():
  program = Program(GEMM)
  assert program.flops('gemm') == 2 * 4 * 2 * 3 * 5
  assert program.bytes('gemm') == 4 * 4 * (2 * 3 + 3 * 5 + 2 * 5)
  assert program.flops('out') == 0


def test_a_fusion_reads_only_the_rows_that_it_gathers():
  program = Program(WIDE)
  assert program.operations['out'].size == 4 * 16 + 3
  # Two rows and two ids are read, and two rows written.
  assert program.bytes('fusion') == 4 * (16 + 2 + 16)
  assert program.flops('fusion') == 0


def test_a_fusion_of_several_parts_names_them_all():
  program = Program(WIDE)
  assert part_of(program, 'fusion') == 'look-up of items + no part by name'
  assert part_of(program, 'all-reduce.1') == 'collectives'


def test_small_rows_of_several_parts_are_shown_as_one():
  row = {'forward': 1.0, 'again': 0.0, 'gradient': 0.0, 'other': 0.0}
  row['of_products'] = 0.5
  rows = [
    row | {'name': name, 'ms': 1.0, 'share': share}
    for name, share in [('a', 0.5), ('a + b', 0.4), ('b + c', 0.005)]
  ]
  rows += [rows[-1] | {'name': 'c + d'}, {'name': 'clock', 'ms': 3.0}]
  head, *shown = table_of(rows)
  names = ['a', 'a + b', 'other parts, fused', 'clock']
  assert [cells[0] for cells in shown] == names
  of_products = head.index('of products')
  assert shown[2][head.index('ms')] == '2.0'
  assert [cells[of_products] for cells in shown] == ['50%', '50%', '-', '-']


@pytest.mark.parametrize(
  ('op_name', 'of'),
  [
    ('jit(_fun)/jvp(loss)/mul', 'forward'),
    ('jit(_fun)/transpose(jvp(groups))/while/body/add_any', 'gradient'),
    ('jit(_fun)/transpose(jvp(x))/rematted_computation/UserEncoder', 'again'),
    ('jit(_fun)/optimizer/mul', 'other'),
    ('jit(_fun)/psum', 'other'),
    ('', 'other'),
  ],
)
def test_only_differentiated_operations_belong_to_a_pass(op_name, of):
  line = f'%a = f32[2]{{0}} sine(%x), metadata={{op_name="{op_name}"}}'
  program = Program(f'%x = f32[2]{{0}} parameter(0)\n{line}')
  times = {'a': [0.001, 0.001] * jax.local_device_count()}
  (row,) = rows_of(program, times, steps=2, rates=(1.0, 1.0))
  assert row[of] == row['ms'] == pytest.approx(1)


def test_parts_without_time_have_no_row():
  program = Program('%x = f32[2]{0} sine(%x)')
  times = {'x': [0.0]}
  assert rows_of(program, times, steps=1, rates=(1.0, 1.0)) == []


def test_only_operations_of_the_module_are_timed(tmp_path):
  x, y = jnp.ones((3, 5)), jnp.ones((5, 7))
  other = jax.jit(lambda x: jnp.tanh(x @ x.T))
  with jax.profiler.trace(tmp_path):
    for _ in range(2):
      jax.block_until_ready((product(x, y), other(x)))
  module = Program(product.lower(x, y).compile().as_text()).module
  assert module == 'jit_product'
  times = times_of(tmp_path, module)
  assert {len(seconds) for seconds in times.values()} == {2}
  with pytest.raises(SettingsError, match='no operation of the step'):
    times_of(tmp_path, 'nothing')
