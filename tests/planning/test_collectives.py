"""What is counted in the text of a compiled program: snippets, and the step on four CPU devices."""

import jax
import pytest

from glm_jax.config import from_dict
from glm_jax.planning.collectives import Collective, census, fsdp_minimum, layer_traffic
from glm_jax.planning.compiled_step import compile_step


def entry(*lines: str) -> str:
    return "\n".join(["ENTRY %main (p: f32[8,16]) -> f32[8,16] {", *lines, "}"])


ARGUMENT = "  %p = f32[8,16]{1,0} parameter(0)"  # 512 bytes


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        ("all-gather", 512 * 3),
        ("all-reduce", 512 * 2 * 3 // 4),
        ("reduce-scatter", 512 * 3 // 4),
        ("all-to-all", 512 * 3 // 4),
    ],
)
@pytest.mark.parametrize(
    "groups",
    [
        "{{0,1,2,3},{4,5,6,7}}",
        "[2,4]<=[8]",
        "mesh['data'=2,'fsdp'=4] {'fsdp'}",
        "mesh['a'=2,'b'=2,'c'=2] {'a','b'}",
        "mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}",
        "mesh['a'=2,'b'=8] {'a','b':(1)2}",
    ],
)
def test_bytes_on_a_ring_of_four(kind, sent, groups):
    line = f"  %x = f32[8,16]{{1,0:T(8,128)}} {kind}(%p), replica_groups={groups}, dimensions={{0}}"
    assert census(entry(ARGUMENT, line)) == [Collective(kind, "f32[8,16]", 4, sent, ())]


def test_groups_of_an_unknown_kind_are_an_error():
    line = "  ROOT %x = f32[8,16] all-reduce(%p), replica_groups={}, to_apply=%sum"
    with pytest.raises(ValueError, match=r"groups that are known here: .*replica_groups=\{\}"):
        census(entry(ARGUMENT, line))


def test_start_and_done_are_one():
    text = entry(
        ARGUMENT,
        "  %s = (f32[8,16]{1,0}, f32[32,16]{1,0}) all-gather-start(%p), replica_groups=[1,4]<=[4]",
        "  %d = f32[32,16]{1,0} all-gather-done(%s)",
        "  %t = ((f32[8,16]), f32[8,16], u32[]) collective-permute-start(%p), "
        "source_target_pairs={{0,1},{1,2},{2,0}}",
        "  ROOT %e = f32[8,16]{1,0} collective-permute-done(%t)",
    )
    found = [(c.kind, c.group_size, c.bytes) for c in census(text)]
    assert found == [("all-gather", 4, 1536), ("collective-permute", 3, 512)]


def test_what_leaves_a_slice_is_sent():
    text = entry(
        ARGUMENT,
        "  %token = token[] after-all()",
        "  %s = (f32[8,16]{1,0}, u32[], token[]) send(%p, %token), is_host_transfer=true, "
        'frontend_attributes={_xla_megascale_target="{1,2}x{0:15}"}',
        "  %d = token[] send-done(%s)",
    )
    assert [(c.kind, c.group_size, c.bytes) for c in census(text)] == [("send", 2, 512)]


def test_a_scatter_kernel_is_a_scatter():
    """One fusion of an all-reduce and the slice that the device keeps of it."""
    kernel = """\
%all-reduce-scatter.1 (q: f32[8,16]) -> f32[2,16] {
  %q = f32[8,16]{1,0} parameter(0)
  %sum = f32[8,16]{1,0} all-reduce(%q), replica_groups=[1,4]<=[4], to_apply=%add
  ROOT %own = f32[2,16]{1,0} dynamic-slice(%sum), dynamic_slice_sizes={2,16}
}

"""
    call = "  ROOT %x = f32[2,16] fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1"
    found = [(c.kind, c.bytes) for c in census(kernel + entry(ARGUMENT, call))]
    assert found == [("reduce-scatter", 512 * 3 // 4)]


def test_one_device_sends_nothing():
    line = "  ROOT %x = f32[8,16] all-reduce(%p), replica_groups={{0},{1}}, to_apply=%sum"
    assert census(entry(ARGUMENT, line)) == []


LOOP_BODY = """\
%body (t: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %t = (s32[], f32[8,16]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %x = f32[8,16]{1,0} get-tuple-element(%t), index=1
  %two = s32[] constant(2)
  %next = s32[] add(%two, %i)
  %y = f32[8,16]{1,0} all-reduce(%x), replica_groups=[1,2]<=[2], to_apply=%sum
  ROOT %out = (s32[], f32[8,16]{1,0}) tuple(%next, %y)
}

%condition (t: (s32[], f32[8,16])) -> pred[] {
  %limit = s32[] constant(9)
  %t = (s32[], f32[8,16]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%t), index=0
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}
"""
LOOP = "  ROOT %l = (s32[], f32[8,16]{1,0}) while(%t), condition=%condition, body=%body"


def times_in_loop(first: str, annotation: str = "") -> list[tuple]:
    counter = f"  %first = s32[] {first}"
    both = "  %t = (s32[], /*index=1*/f32[8,16]{1,0}) tuple(%first, %p)"
    return [
        (c.loops, c.times, c.total_bytes)
        for c in census(LOOP_BODY + entry(ARGUMENT, counter, both, LOOP + annotation))
    ]


def test_loops_multiply():
    assert times_in_loop("constant(1)") == [((4,), 4, 4 * 512)]  # 1, 3, 5, 7
    annotated = ', backend_config={"known_trip_count":{"n":"7"}}'
    assert times_in_loop("constant(1)", annotated) == [((7,), 7, 7 * 512)]


def test_a_loop_whose_length_is_data_counts_once():
    assert times_in_loop("get-dimension-size(%p)") == [((None,), 1, 512)]


def test_a_collective_that_is_cut_into_fusions_counts_where_it_starts():
    text = """\
%start (a: f32[8,16]) -> (f32[8,16], f32[32,16]) {
  %a = f32[8,16]{1,0} parameter(0)
  %g.1 = f32[32,16]{1,0} all-gather(%a), replica_groups=[1,4]<=[4], attributes={chain_id="1"}
  ROOT %c = (f32[8,16], f32[32,16]) custom-call(%g.1), custom_call_target="AsyncCollectiveStart"
}

%middle (a: f32[8,16]) -> f32[32,16] {
  %a = f32[8,16]{1,0} parameter(0)
  ROOT %g.2 = f32[32,16]{1,0} all-gather(%a), replica_groups=[1,4]<=[4], attributes={chain_id="1"}
}

%end (a: f32[8,16]) -> f32[32,16] {
  %a = f32[8,16]{1,0} parameter(0)
  %g.3 = f32[32,16]{1,0} all-gather(%a), replica_groups=[1,4]<=[4], attributes={chain_id="1"}
  ROOT %c = f32[32,16] custom-call(%a, %g.3), custom_call_target="AsyncCollectiveDone"
}
"""
    text += entry(
        ARGUMENT,
        "  %f.1 = (f32[8,16], f32[32,16]) fusion(%p), kind=kCustom, calls=%start",
        "  %f.2 = f32[32,16]{1,0} fusion(%p), kind=kOutput, calls=%middle",
        "  %f.3 = f32[32,16]{1,0} fusion(%p), kind=kCustom, calls=%end",
    )
    assert [c.total_bytes for c in census(text)] == [1536]


def test_layers_are_the_loops_of_their_number():
    gather = Collective("all-gather", "bf16[4]", 4, 100, (2, 6, 5))
    reduce = Collective("all-reduce", "bf16[4]", 4, 10, (5,))  # of six runs one was taken out
    outside = Collective("all-gather", "bf16[4]", 4, 100, (2,))
    traffic = layer_traffic([gather, reduce, outside], 6, minimum=300)
    assert traffic.by_kind == {"all-gather": 1000, "all-reduce": 10}
    assert traffic.total == 1010


def test_the_minimum_is_two_gathers_a_scatter_and_the_sum_over_copies():
    assert fsdp_minimum(1600, 1, compute_bytes=2) == 0
    assert fsdp_minimum(1600, 16, compute_bytes=2) == (2 * 2 + 4) * 1500
    assert fsdp_minimum(1600, 16, compute_bytes=2, gradient_bytes=2) == 6 * 1500
    assert fsdp_minimum(1600, 16, copies=2, compute_bytes=2) == 8 * 1500 + 4 * 100


@pytest.mark.slow
@pytest.mark.multidevice
def test_the_step_on_four_devices_gathers_every_weight_twice():
    layers, hidden, mlp = 3, 32, 64
    model = {"num_layers": layers, "hidden_dim": hidden, "mlp_dim": mlp, "num_heads": 4}
    model |= {"vocab_size": 64, "max_positions": 16, "dtype": "float32", "remat": "full"}
    config = from_dict(
        {
            "model": model,
            "data": {"seq_length": 16},
            "training": {"batch_size": 8},
            "optimizer": {"warmup_steps": 1},
            "mesh": {"data": 1, "fsdp": 4, "rules": "fsdp"},
        }
    )
    step = compile_step(config, jax.devices())
    weights = 4 * hidden * hidden + 2 * hidden * mlp
    minimum = fsdp_minimum(weights, 4, compute_bytes=4)
    traffic = layer_traffic(step.collectives, layers, minimum)
    vectors = hidden * 6  # scales and biases along the hidden size: norms', out's and down's
    biases = 3 * hidden + mlp
    assert traffic.by_kind["reduce-scatter"] == 4 * weights * 3 // 4
    assert traffic.by_kind["all-reduce"] <= 2 * 4 * (vectors + biases) * 3 // 4
    gathers = traffic.by_kind["all-gather"]
    assert 2 * 4 * weights * 3 // 4 < gathers <= 2 * 4 * (weights + 2 * vectors) * 3 // 4
    assert step.memory.arguments > 3 * layers * 4 * weights / 4  # parameters and two moments
