"""What a compiled program costs, read from its text: products in loops, groups of chips, and time on an ideal chip."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from alhena.pretrain import hlo

SPEEDS = hlo.Speeds(flops=1e9, hbm=1e30, transfer=lambda t: t.sent / 1e6)


def walk(text: str, chips_per_pod: int = 4, visited: float = 1.0) -> hlo.Totals:
    return hlo.Walk(hlo.parse(text), SPEEDS, chips_per_pod, visited).total()


def test_products_in_a_loop_count_as_often_as_it_runs():
    def f(w, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0].sum()

    w, x = jnp.zeros((7, 32, 32)), jnp.zeros((16, 32))
    compiled = jax.jit(jax.grad(f, (0, 1))).lower(w, x).compile()
    once = 2 * 16 * 32 * 32
    assert walk(compiled.as_text()).flops == 7 * 3 * once  # forward, and two products going back
    assert compiled.cost_analysis()["flops"] < 7 * 3 * once  # the compiler's own total takes the loop once


def test_bytes_of_a_slice_are_the_slice():
    def f(stack, i):
        return jax.lax.dynamic_index_in_dim(stack, i, keepdims=False) * 2.0

    text = jax.jit(f).lower(jnp.zeros((100, 64, 64)), 3).compile().as_text()
    assert walk(text).hbm < 4 * (64 * 64 * 4)


COLLECTIVES = """HloModule m, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

ENTRY %main (x: f32[1000], w: f32[100,100]) -> f32[4000] {
  %x = f32[1000]{0} parameter(0)
  %w = f32[100,100]{1,0:T(8,128)} parameter(1)
  %start = (f32[1000]{0}, f32[4000]{0}) all-gather-start(%x), replica_groups=GROUPS, dimensions={0}
  %dot.1 = f32[100,100]{1,0} dot(%w, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %y = f32[1000]{0} all-reduce(%x), replica_groups=GROUPS, to_apply=%add
  ROOT %done = f32[4000]{0} all-gather-done(%start)
}
"""


@pytest.mark.parametrize(
    ("groups", "between"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", False),
        ("{{0,2,4,6},{1,3,5,7}}", True),
        ("[2,4]<=[8]", False),
        ("[2,4]<=[4,2]T(1,0)", True),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", False),
        ("mesh['axis_0'=2,'axis_1'=4], device_ids=([4,2]T(1,0)) {'axis_1'}", True),
    ],
)
def test_groups_are_read_in_every_way_they_are_written(groups, between):
    total = walk(COLLECTIVES.replace("GROUPS", groups))
    sent = {"all-gather": 3 / 4 * 16_000, "all-reduce": 2 * 3 / 4 * 4_000}
    assert (total.between if between else total.inside) == sent
    assert (total.inside if between else total.between) == {}
    assert total.largest == {"all-gather": 16_000, "all-reduce": 4_000}


def test_what_is_started_early_is_waited_for_only_as_long_as_needed():
    total = walk(COLLECTIVES.replace("GROUPS", "[2,4]<=[8]"))
    # The gather takes 12 ms; the product's 2 ms are hidden behind it; the links carry one transfer at a time, so the sum comes after it.
    assert total.busy == pytest.approx(2e-3, rel=0.01)
    assert total.links == pytest.approx(18e-3)
    assert total.seconds == pytest.approx(18e-3)


CONVOLUTION = """HloModule m

ENTRY %main (x: bf16[6,8,16], w: bf16[6,16,32]) -> f32[6,8,32] {
  %x = bf16[6,8,16]{2,1,0} parameter(0)
  %w = bf16[6,16,32]{2,1,0} parameter(1)
  ROOT %c = f32[6,8,32]{2,1,0} convolution(%x, %w), window={size=6 stride=5 pad=0_0 lhs_dilate=6}, dim_labels=0bf_0io->0bf
}
"""


def test_a_batched_product_that_the_tpu_compiler_writes_as_a_convolution():
    assert walk(CONVOLUTION).flops == 2 * 6 * 8 * 16 * 32


KERNEL = """HloModule m

ENTRY %main (q: bf16[2,4,256,128], k: bf16[2,256,128]) -> bf16[2,4,256,128] {
  %q = bf16[2,4,256,128]{3,2,1,0} parameter(0)
  %k = bf16[2,256,128]{2,1,0} parameter(1)
  ROOT %splash_mqa_fwd_residuals.1 = bf16[2,4,256,128]{3,2,1,0} custom-call(%q, %k, %k), custom_call_target="tpu_custom_call"
}
"""


def test_products_of_the_attention_kernel():
    assert walk(KERNEL, visited=0.5).flops == 0.5 * 2 * 2 * (2 * 4 * 256 * 256 * 128)


def test_a_loop_without_a_bound_and_text_that_is_no_program_are_refused():
    loop = "%body (p: s32[]) -> s32[] {\n}\n%if (p: s32[]) -> pred[] {\n  %p = s32[] parameter(0)\n  ROOT %c = pred[] compare(%p, %p)\n}\n"
    entry = "ENTRY %main (x: s32[]) -> s32[] {\n  %x = s32[] parameter(0)\n  ROOT %w = s32[] while(%x), condition=%if, body=%body\n}\n"
    with pytest.raises(ValueError, match="how often does the loop w run"):
        walk(loop + entry)
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("module @jit_f {}")
