"""The training step compiled for pods: its memory, what layers send, its kernel.

One pod has the 1.3B model in full. For the others the model is narrow and its rows short, as the
time of a compilation grows with both. `benchmarks/pods.py` compiles all of them in full.
"""

from typing import NamedTuple

import pytest

from glm_jax.config import Config, MeshConfig, from_dict
from glm_jax.errors import UserError
from glm_jax.parallel.mesh import make_mesh
from glm_jax.planning.collectives import fsdp_minimum, layer_traffic
from glm_jax.planning.compiled_step import compile_step
from glm_jax.planning.topologies import described_devices
from glm_jax.training.flops import model_costs

GLM_1B3 = {"num_layers": 24, "hidden_dim": 2048, "num_heads": 16, "mlp_dim": 8192}
GLM_1B3 |= {"vocab_size": 65_024, "max_positions": 2048}
NARROW = {"num_layers": 6, "hidden_dim": 512, "num_heads": 4, "mlp_dim": 2048}
NARROW |= {"vocab_size": 8192, "max_positions": 512}
MIB = 2**20


class Pod(NamedTuple):
    """What the compiler of jax 0.10.2 made of the step; figures may grow by `TOLERANCE`.

    For TPUs that is libtpu 0.0.42.1.
    """

    topology: str
    num_slices: int
    data: int  # of the mesh; fsdp has the other devices
    model: dict
    peak_mib: float
    kinds: set[str]  # of at least 1 % of what a layer sends
    over_minimum: float  # what a layer sends, in units of `fsdp_minimum`
    kernels: int  # forward, forward again for the gradients, dq, dk and dv


TOLERANCE = 1.05
ZERO3 = {"all-gather", "reduce-scatter"}
PODS = [
    # What the parts of a scatter lack to whole tiles its neighbours send it.
    Pod("v5e:4x4", 1, 1, GLM_1B3, 3256, {*ZERO3, "collective-permute"}, 1.033, 4),
    # The last of the backward runs is taken out of its loop, and has kernels of its own. Parts of
    # 32 columns are too narrow to be scattered.
    Pod("v5e:4x4", 2, 2, NARROW, 102.4, {*ZERO3, "all-reduce", "send"}, 1.076, 7),
    # Gradients are summed over copies.
    Pod("v5p:4x4x4", 1, 4, NARROW, 70.6, {*ZERO3, "all-reduce"}, 1.003, 4),
    Pod("v6e:8x8", 1, 1, NARROW, 77.2, ZERO3, 1.003, 4),
]


H200 = Pod("h200:8", 1, 1, GLM_1B3, 5055, ZERO3, 1.001, 7)


@pytest.mark.aot
@pytest.mark.usefixtures("libtpu")
@pytest.mark.parametrize("pod", PODS, ids=lambda pod: f"{pod.topology}x{pod.num_slices}")
def test_memory_and_traffic_stay_as_recorded(pod):
    check(pod)


@pytest.mark.aot
@pytest.mark.usefixtures("libtpu")
def test_slices_are_told_apart_by_data_alone():
    devices = described_devices("v5e:4x4", 2)
    mesh = make_mesh(MeshConfig(data=4, fsdp=8), devices)
    slices = [{device.slice_index for device in row.flat} for row in mesh.devices]
    assert slices == [{0}, {0}, {1}, {1}]
    with pytest.raises(UserError, match="config.mesh.data=1 is no multiple of the 2 slices"):
        make_mesh(MeshConfig(data=1, fsdp=32), devices)


@pytest.mark.aot
def test_eight_gpus():
    reason = "JAX's CUDA part is absent: pip install 'jax[cuda13]'"
    pytest.importorskip("jax_cuda13_plugin", reason=reason)
    check(H200)


def check(pod: Pod) -> None:
    devices = described_devices(pod.topology, pod.num_slices)
    config = configured(pod, len(devices))
    step = compile_step(config, devices)
    layers = config.model.num_layers
    weights = model_costs(config.model).layer_weights // layers
    minimum = fsdp_minimum(weights, len(devices) // pod.data, pod.data, compute_bytes=2)
    traffic = layer_traffic(step.collectives, layers, minimum)
    kinds = {kind for kind, sent in traffic.by_kind.items() if sent > 0.01 * traffic.total}
    assert (kinds, step.num_kernels) == (pod.kinds, pod.kernels)
    assert minimum < traffic.total < TOLERANCE * pod.over_minimum * minimum
    assert step.memory.arguments < step.memory.peak < TOLERANCE * pod.peak_mib * MIB


def configured(pod: Pod, num_devices: int) -> Config:
    return from_dict(
        {
            "model": pod.model | {"remat": "full"},
            "data": {"seq_length": pod.model["max_positions"]},
            "training": {"batch_size": 4 * num_devices, "steps": 10_000},
            "mesh": {"data": pod.data, "fsdp": -1, "rules": "fsdp"},
        }
    )
