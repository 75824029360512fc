"""Bounds by hand."""

import dataclasses

import pytest

from glm_jax.config import from_dict
from glm_jax.parallel.device_kinds import DeviceKind
from glm_jax.planning.compiled_step import CompiledStep, Memory
from glm_jax.planning.roofline import roofline
from glm_jax.training.flops import Counts, model_costs

HLO = """\
ENTRY %main (p: f32[1000]) -> f32[4000] {
  %p = f32[1000]{0} parameter(0)
  ROOT %x = f32[4000]{0} all-gather(%p), replica_groups=[1,4]<=[4], dimensions={0}
}"""  # sends 12,000 bytes
STEP = CompiledStep(1.0, 1.0, Memory(5000, 3000, 0, 0, 9000), HLO)
COUNTS = Counts(slots=64, tokens=60, targets=10, pairs=400, row_length=16)
CONFIG = from_dict(
    {"model": {"vocab_size": 64, "num_layers": 2, "hidden_dim": 8, "num_heads": 2, "mlp_dim": 16}}
)
FLOPS = model_costs(CONFIG.model).of_step(COUNTS)
DEVICE = DeviceKind(peak_flops=1e9, hbm_bytes=1.0, hbm_bandwidth=1e9, link_bandwidth=1e9)


def test_each_limit_is_its_amount_by_its_rate():
    bound = roofline(CONFIG, STEP, DEVICE, COUNTS)
    assert bound.compute == pytest.approx(FLOPS.hardware / 1e9)
    assert bound.memory == pytest.approx((5000 + 3000 + 2 * 12_000) / 1e9)
    assert bound.network == pytest.approx(12_000 / 1e9)
    assert bound.seconds == bound.compute
    assert bound.mfu == pytest.approx(FLOPS.useful / FLOPS.hardware)


@pytest.mark.parametrize(("rate", "limit"), [("hbm_bandwidth", 32_000), ("link_bandwidth", 12_000)])
def test_the_slowest_limit_is_the_bound(rate, limit):
    slow = dataclasses.replace(DEVICE, **{rate: 1.0})
    bound = roofline(CONFIG, STEP, slow, COUNTS)
    assert bound.seconds == limit
    assert bound.mfu == pytest.approx(FLOPS.useful / (1e9 * limit))
