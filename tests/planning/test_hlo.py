"""Costs of a compiled program from its text: FLOPs in loops, replica groups, and time on an ideal chip."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from alhena.planning.hlo import parse
from alhena.planning.simulator import Simulator, Speeds, Totals

SPEEDS = Speeds(flops=1e9, hbm=1e30, transfer=lambda t: t.sent / 1e6)


def simulate(text: str, chips_per_pod: int = 4, computed_fraction: float = 1.0) -> Totals:
    return Simulator(parse(text), SPEEDS, chips_per_pod, computed_fraction).total()


def test_flops_in_a_loop_count_once_per_iteration():
    def f(w, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0].sum()

    w, x = jnp.zeros((7, 32, 32)), jnp.zeros((16, 32))
    compiled = jax.jit(jax.grad(f, (0, 1))).lower(w, x).compile()
    once = 2 * 16 * 32 * 32
    assert simulate(compiled.as_text()).flops == 7 * 3 * once  # one matmul forward, two backward
    assert compiled.cost_analysis()["flops"] < 7 * 3 * once  # the compiler's total counts the loop once


def test_bytes_of_a_slice_are_the_slice():
    def f(stack, i):
        return jax.lax.dynamic_index_in_dim(stack, i, keepdims=False) * 2.0

    text = jax.jit(f).lower(jnp.zeros((100, 64, 64)), 3).compile().as_text()
    assert simulate(text).hbm < 4 * (64 * 64 * 4)


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
def test_replica_groups_are_parsed_in_every_notation(groups, between):
    total = simulate(COLLECTIVES.replace("GROUPS", groups))
    sent = {"all-gather": 3 / 4 * 16_000, "all-reduce": 2 * 3 / 4 * 4_000}
    assert (total.between_pods if between else total.within_pod) == sent
    assert (total.within_pod if between else total.between_pods) == {}
    assert total.largest == {"all-gather": 16_000, "all-reduce": 4_000}


def test_asynchronous_transfers_overlap_with_compute():
    total = simulate(COLLECTIVES.replace("GROUPS", "[2,4]<=[8]"))
    # The gather takes 12 ms and overlaps with 2 ms of matmul. Links carry one transfer at a time, so the all-reduce follows it.
    assert total.busy == pytest.approx(2e-3, rel=0.01)
    assert total.links == pytest.approx(18e-3)
    assert total.seconds == pytest.approx(18e-3)


# From nano-2 on v5e:4x4, as the TPU compiler wrote it (libtpu 0.0.42), synchronization flags left out: the tokens of two sequences are
# gathered during the matmul of the gradient of ``gate``, and a matmul's partial sums are scattered.
TPU_COLLECTIVES = """HloModule jit_train_step, is_scheduled=true

%region_31.35.clone (a: bf16[], b: bf16[]) -> bf16[] {
  %a = bf16[] parameter(0)
  %b = bf16[] parameter(1)
  ROOT %add.1 = bf16[] add(%a, %b)
}

%fused_computation.2067 (param_0.6880: bf16[2,8192,2560]) -> (bf16[2,8192,2560], bf16[2,32768,2560]) {
  %param_0.6880 = bf16[2,8192,2560]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-gather.342 = bf16[2,32768,2560]{2,1,0:T(8,128)(2,1)} all-gather(%param_0.6880), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7},{8,9,10,11},{12,13,14,15}}, dimensions={1}, use_global_device_ids=true, frontend_attributes={chain_id="6"}
  ROOT %custom-call.66 = (bf16[2,8192,2560]{2,1,0:T(8,128)(2,1)S(1)}, bf16[2,32768,2560]{2,1,0:T(8,128)(2,1)}) custom-call(%all-gather.342), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.2281 (param_0.6883: bf16[2,8192,2560], param_1.6978: bf16[2,32768,2560], param_9.781: bf16[65536,2560], param_10.777: bf16[2560,65536]) -> (bf16[2560,2560], bf16[2,8192,2560], bf16[2,32768,2560], bf16[2,32768,2560]) {
  %param_10.777 = bf16[2560,65536]{0,1:T(8,128)(2,1)} parameter(3)
  %param_9.781 = bf16[65536,2560]{1,0:T(8,128)(2,1)} parameter(2)
  %convolution.527 = f32[2560,2560]{1,0:T(8,128)} convolution(%param_10.777, %param_9.781), dim_labels=bf_io->bf
  %convert_element_type.2957 = bf16[2560,2560]{1,0:T(8,128)(2,1)} convert(%convolution.527)
  %param_0.6883 = bf16[2,8192,2560]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)
  %param_1.6978 = bf16[2,32768,2560]{2,1,0:T(8,128)(2,1)} parameter(1)
  %all-gather.344 = bf16[2,32768,2560]{2,1,0:T(8,128)(2,1)} all-gather(%param_0.6883), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7},{8,9,10,11},{12,13,14,15}}, dimensions={1}, use_global_device_ids=true, frontend_attributes={chain_id="6"}
  ROOT %tuple.1345 = (bf16[2560,2560]{1,0:T(8,128)(2,1)}, bf16[2,8192,2560]{2,1,0:T(8,128)(2,1)S(1)}, bf16[2,32768,2560]{2,1,0:T(8,128)(2,1)}, bf16[2,32768,2560]{2,1,0:T(8,128)(2,1)}) tuple(%convert_element_type.2957, %param_0.6883, %param_1.6978, %all-gather.344)
}

%fused_computation.2069 (param_0.6884: bf16[2,8192,2560], param_1.6979: bf16[2,32768,2560]) -> bf16[2,32768,2560] {
  %param_0.6884 = bf16[2,8192,2560]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)
  %param_1.6979 = bf16[2,32768,2560]{2,1,0:T(8,128)(2,1)} parameter(1)
  %all-gather.346 = bf16[2,32768,2560]{2,1,0:T(8,128)(2,1)} all-gather(%param_0.6884), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7},{8,9,10,11},{12,13,14,15}}, dimensions={1}, use_global_device_ids=true, frontend_attributes={chain_id="6"}
  ROOT %custom-call.68 = bf16[2,32768,2560]{2,1,0:T(8,128)(2,1)} custom-call(%param_0.6884, %param_1.6979, %all-gather.346), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.12.clone.1 (input.48: bf16[32768,2560]) -> bf16[8272,2560] {
  %input.48 = bf16[32768,2560]{1,0:T(8,128)(2,1)} parameter(0)
  %constant.6642 = bf16[] constant(0)
  %pad.827 = bf16[33088,2560]{1,0:T(8,128)(2,1)} pad(%input.48, %constant.6642), padding=0_320x0_0
  %all-reduce.203 = bf16[33088,2560]{1,0:T(8,128)(2,1)} all-reduce(%pad.827), channel_id=377, replica_groups={{0,1,2,3},{4,5,6,7},{8,9,10,11},{12,13,14,15}}, use_global_device_ids=true, to_apply=%region_31.35.clone
  %constant.6644 = u32[] constant(0)
  ROOT %dynamic-slice.1456 = bf16[8272,2560]{1,0:T(8,128)(2,1)S(1)} dynamic-slice(%all-reduce.203, %constant.6644, %constant.6644), dynamic_slice_sizes={8272,2560}
}

ENTRY %main (h: bf16[2,8192,2560], d: bf16[65536,2560], x: bf16[2560,65536], y: bf16[32768,2560]) -> bf16[8272,2560] {
  %h = bf16[2,8192,2560]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)
  %d = bf16[65536,2560]{1,0:T(8,128)(2,1)} parameter(1)
  %x = bf16[2560,65536]{0,1:T(8,128)(2,1)} parameter(2)
  %y = bf16[32768,2560]{1,0:T(8,128)(2,1)} parameter(3)
  %async-collective-start.6 = (bf16[2,8192,2560]{2,1,0:T(8,128)(2,1)S(1)}, bf16[2,32768,2560]{2,1,0:T(8,128)(2,1)}) fusion(%h), kind=kCustom, calls=%fused_computation.2067
  %near = bf16[2,8192,2560]{2,1,0:T(8,128)(2,1)S(1)} get-tuple-element(%async-collective-start.6), index=0
  %far = bf16[2,32768,2560]{2,1,0:T(8,128)(2,1)} get-tuple-element(%async-collective-start.6), index=1
  %fusion.2281 = (bf16[2560,2560]{1,0:T(8,128)(2,1)}, bf16[2,8192,2560]{2,1,0:T(8,128)(2,1)S(1)}, bf16[2,32768,2560]{2,1,0:T(8,128)(2,1)}, bf16[2,32768,2560]{2,1,0:T(8,128)(2,1)}) fusion(%near, %far, %d, %x), kind=kOutput, calls=%async_collective_fusion.2281
  %near.1 = bf16[2,8192,2560]{2,1,0:T(8,128)(2,1)S(1)} get-tuple-element(%fusion.2281), index=1
  %far.1 = bf16[2,32768,2560]{2,1,0:T(8,128)(2,1)} get-tuple-element(%fusion.2281), index=2
  %async-collective-done.6 = bf16[2,32768,2560]{2,1,0:T(8,128)(2,1)} fusion(%near.1, %far.1), kind=kCustom, calls=%fused_computation.2069
  ROOT %fusion.2236 = bf16[8272,2560]{1,0:T(8,128)(2,1)S(1)} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.12.clone.1
}
"""


def test_collectives_in_the_notation_of_the_tpu_compiler():
    """A gather in a chain of three fusions counts once and overlaps with the second; an all-reduce with a slice is a reduce-scatter."""
    speeds = Speeds(flops=1e12, hbm=1e30, transfer=lambda t: t.sent / 1e9)
    total = Simulator(parse(TPU_COLLECTIVES), speeds, 16).total()
    tokens, padded, flops = 2 * 32768 * 2560 * 2, 33088 * 2560 * 2, 2 * 2560 * 2560 * 65536
    assert total.within_pod == {"all-gather": 3 / 4 * tokens, "reduce-scatter": 3 / 4 * padded}
    assert total.flops == flops
    assert flops / 1e12 > 3 / 4 * tokens / 1e9  # so the gather overlaps fully, the scatter does not
    assert total.seconds == pytest.approx(flops / 1e12 + 3 / 4 * padded / 1e9)
    matmul = (65536 * 2560 + 2560 * 65536 + 2560 * 2560) * 2  # operands and result, not the values passed through
    scattered = 32768 * 2560 * 2
    assert total.hbm == matmul + scattered


CONVOLUTION = """HloModule m

ENTRY %main (x: bf16[6,8,16], w: bf16[6,16,32]) -> f32[6,8,32] {
  %x = bf16[6,8,16]{2,1,0} parameter(0)
  %w = bf16[6,16,32]{2,1,0} parameter(1)
  ROOT %c = f32[6,8,32]{2,1,0} convolution(%x, %w), window={size=6 stride=5 pad=0_0 lhs_dilate=6}, dim_labels=0bf_0io->0bf
}
"""


def test_a_batched_matmul_that_the_tpu_compiler_writes_as_a_convolution():
    assert simulate(CONVOLUTION).flops == 2 * 6 * 8 * 16 * 32


# The attention kernels of the same program: block masks come first, then queries, keys and values.
KERNELS = """HloModule jit_train_step

ENTRY %main (m: s8[1,64,64], q: bf16[2,5,32768,128], k: bf16[2,1,32768,128], s: f32[2,5,1,32768]) -> bf16[2,5,32768,128] {
  %m = s8[1,64,64]{2,1,0} parameter(0)
  %q = bf16[2,5,32768,128]{3,2,1,0:T(8,128)(2,1)} parameter(1)
  %k = bf16[2,1,32768,128]{3,2,1,0:T(8,128)(2,1)} parameter(2)
  %s = f32[2,5,1,32768]{3,2,1,0:T(1,128)} parameter(3)
  %splash_mha_fwd_segmented_residuals.2 = (f32[2,512,128]{2,1,0:T(8,128)}, f32[2,512,128]{2,1,0:T(8,128)}, f32[2,512,128]{2,1,0:T(8,128)}, bf16[2,5,32768,128]{3,2,1,0:T(8,128)(2,1)S(1)}, f32[2,5,32768,128]{3,2,1,0:T(8,128)}) custom-call(%m, %m, %q, %k, %k), custom_call_target="tpu_custom_call"
  %splash_mha_dkv_segmented_no_residuals.1 = (f32[2,512,128]{2,1,0:T(8,128)}, f32[2,512,128]{2,1,0:T(8,128)}, bf16[2,1,32768,128]{3,2,1,0:T(8,128)(2,1)S(1)}, bf16[2,1,32768,128]{3,2,1,0:T(8,128)(2,1)S(1)}) custom-call(%m, %m, %q, %k, %k, /*index=5*/%s, %q, %s), custom_call_target="tpu_custom_call"
  ROOT %splash_mha_dq_segmented_no_residuals.1 = (f32[2,512,128]{2,1,0:T(8,128)}, bf16[2,5,32768,128]{3,2,1,0:T(8,128)(2,1)}) custom-call(%m, %m, %q, %k, %k, /*index=5*/%s, %q, %s), custom_call_target="tpu_custom_call"
}
"""


def test_flops_of_the_attention_kernels():
    """Two matmuls forward. Both backward kernels recompute the scores: seven matmuls in place of five."""
    one = 2 * (2 * 5 * 32768) * 32768 * 128
    assert simulate(KERNELS, computed_fraction=0.5).flops == 0.5 * (2 + 4 + 3) * one


def test_a_loop_without_a_bound_and_text_without_an_entry_are_refused():
    loop = "%body (p: s32[]) -> s32[] {\n}\n%if (p: s32[]) -> pred[] {\n  %p = s32[] parameter(0)\n  ROOT %c = pred[] compare(%p, %p)\n}\n"
    entry = "ENTRY %main (x: s32[]) -> s32[] {\n  %x = s32[] parameter(0)\n  ROOT %w = s32[] while(%x), condition=%if, body=%body\n}\n"
    with pytest.raises(ValueError, match="the trip count of the loop w is unknown"):
        simulate(loop + entry)
    with pytest.raises(ValueError, match="no ENTRY"):
        parse("module @jit_f {}")
