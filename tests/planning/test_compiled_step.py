"""What is refused before anything is compiled."""

import math

import jax
import pytest

from glm_jax.config import from_dict
from glm_jax.errors import UserError
from glm_jax.planning.compiled_step import DoesNotFit, _refusal, check_fits, compile_step
from glm_jax.planning.topologies import described_devices


@pytest.mark.parametrize(
    "name",
    ["v5e", "v9:4x4", "v5e:4", "v5e:0x4", "v5e:4x4x4", "v6e:32x8", "v5p:4x4", "h200:9", "cpu:0"],
)
def test_an_unknown_topology_is_one_line_with_the_known_ones(name):
    with pytest.raises(UserError, match=f"topology {name} is not known; known.*v5e:4x4"):
        described_devices(name)


@pytest.mark.parametrize("name", ["h200:8", "cpu:4"])
def test_only_tpus_have_slices(name):
    with pytest.raises(UserError, match=f"--num_slices=2: {name} has no slices"):
        described_devices(name, 2)


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"v5p:4x4x4 needs libtpu: pip install 'jax\[tpu\]'"):
        described_devices("v5p:4x4x4")
    with pytest.raises(UserError, match=r"h200:8 needs JAX for CUDA: pip install 'jax\[cuda13\]'"):
        described_devices("h200:8")


def test_a_step_that_a_gpu_cannot_hold_is_refused():
    message = r"memory of NVIDIA H200: it needs 150.0 GiB of 141, 9.0 too much"
    with pytest.raises(DoesNotFit, match=message) as refused:
        check_fits("the step", 150 * 2**30, "NVIDIA H200")
    assert refused.value.needed == 150 * 2**30
    check_fits("the step", 140 * 2**30, "NVIDIA H200")
    check_fits("the step", 150 * 2**30, "cpu")


@pytest.mark.parametrize(
    "message",
    [
        "Ran out of memory in memory space hbm. Used 18.50G of 15.75G hbm. Exceeded hbm capacity",
        "memory required for HLO temporaries (18.50G) exceeds available HBM (15.75G).",
    ],
)
def test_what_the_compiler_for_tpus_refuses_says_by_how_much(message):
    refusal = _refusal(message, "TPU v5e")
    assert str(refusal).endswith("of TPU v5e: it needs 18.5 GiB of 15.75, 2.8 too much")
    assert refusal.needed == 18.5 * 2**30


def test_a_refusal_without_sizes_is_repeated():
    refusal = _refusal("out of memory", "TPU v5e")
    assert str(refusal).endswith("of TPU v5e: out of memory")
    assert refusal.needed == math.inf


def test_a_batch_that_does_not_divide_and_an_unknown_vocabulary_are_refused():
    values = {"training": {"batch_size": 6}, "optimizer": {"warmup_steps": 1}}
    with pytest.raises(UserError, match="vocab_size is 0"):
        compile_step(from_dict(values), jax.devices())
    config = from_dict(values | {"model": {"vocab_size": 64}})
    with pytest.raises(UserError, match="= 6 rows are not divisible by the 4 devices of mesh axes"):
        compile_step(config, jax.devices())
    config = from_dict(
        {"model": {"vocab_size": 64}, "data": {"seq_length": 30}, "mesh": {"context": 4}}
    )
    with pytest.raises(UserError, match=r"data\.seq_length 30 is not divisible by the 4 devices"):
        compile_step(config, jax.devices())
