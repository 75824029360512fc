"""`fit` as it is typed, and beside the step of a run."""

import re

import jax
import numpy as np
import pytest
from commands import ROOT, run_command

from glm_jax.batch import Batch
from glm_jax.config import from_dict
from glm_jax.parallel.sharding import make_sharding
from glm_jax.planning.plan import compile_for, describe_step
from glm_jax.planning.search import search
from glm_jax.planning.search_text import describe_ranking
from glm_jax.training.step import init_state, make_train_step

SMALL = {"model": {"num_layers": 2, "hidden_dim": 32, "num_heads": 2, "mlp_dim": 64}}
SMALL["model"] |= {"vocab_size": 64, "max_positions": 16, "dtype": "float32"}
SMALL |= {"data": {"seq_length": 16}, "training": {"batch_size": 8}}
SMALL |= {"optimizer": {"warmup_steps": 1}, "mesh": {"data": 1, "fsdp": -1}}


def fit(*flags: str):
    return run_command("-m", "glm_jax.fit", f"--config={ROOT}/configs/glm_tiny.py", *flags)


@pytest.mark.slow
def test_the_command_says_what_a_run_takes():
    finished = fit(
        "--topology=cpu:4",
        "--vocab_size=60",
        "--config.model.num_layers=2",
        "--config.model.hidden_dim=32",
        "--config.model.mlp_dim=64",
        "--config.mesh.data=2",
        "--config.mesh.fsdp=2",
        "--config.mesh_rules=('cpu x 4: data=4 fsdp=1 remat=full',)",
    )
    assert finished.returncode == 0, finished.stderr
    said = finished.stdout
    assert "mesh data=2 x fsdp=2 x context=1 x model=1 of cpu, rules fsdp_model, remat full" in said
    assert "vocabulary 128" in said
    memory = said.partition("memory of a device, MiB")[2].partition("sent by a device")[0]
    *kinds, peak = [float(figure) for figure in re.findall(r" (\d+\.\d\d)\b", memory)]
    assert len(kinds) > 3
    assert sum(kinds) == pytest.approx(peak, abs=0.05)
    for figure in ("all-reduce", "useful", "PaLM", "HFU", "no peak is known for this device"):
        assert figure in said
    assert "3,000 steps: 3,072,000 tokens" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--topology=cpu:4"], "vocab_size is 0: --vocab_size=N"),
        (["--topology=v9:2x2", "--vocab_size=60"], "v9:2x2 is not known; known, with other"),
        (["--topology=cpu:4", "--vocab_size=60", "--config.mesh.data=3"], "not fit 4 devices"),
        (
            ["--topology=cpu:16", "--vocab_size=60"],
            "not divisible by the 16 devices of mesh axes data x fsdp; nearest that should fit, by "
            "arithmetic (about",
        ),
    ],
)
def test_a_mistake_is_one_line(flags, message):
    finished = fit(*flags)
    assert finished.returncode == 2, finished.stderr
    [line] = [line for line in finished.stderr.splitlines() if line.startswith("error:")]
    assert message in line
    assert "memory of a device" not in finished.stdout


@pytest.mark.multidevice
def test_the_memory_is_that_of_the_step_of_a_run():
    config = from_dict(SMALL)
    sharding = make_sharding(config.mesh)
    plan = describe_step(config, compile_for(config, jax.devices()), jax.devices())
    fields = [np.zeros((8, 16), np.int32)] * len(Batch._fields)
    batch = sharding.place(Batch(*fields)._replace(weights=np.zeros((8, 16), np.float32)))
    state = init_state(config, sharding)
    compiled = make_train_step(config, sharding, 1).lower(state, batch).compile()
    stats = compiled.memory_analysis()
    assert plan.memory.arguments == stats.argument_size_in_bytes
    assert plan.memory.temporaries == stats.temp_size_in_bytes
    for kind, tree in (
        (plan.held.parameters, state.params),
        (plan.held.optimizer, state.opt_state),
        (plan.held.state, state),
        (plan.held.batch, batch),
    ):
        on_first = [x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree)]
        assert kind == sum(on_first)


@pytest.mark.slow
@pytest.mark.multidevice
def test_a_search_ranks_what_it_compiled():
    found = list(search(from_dict(SMALL), jax.devices(), num_slices=1, max_compiles=3))
    assert [tried.problem for tried in found] == [None] * 3
    said = describe_ranking(found)
    best = min(found, key=lambda tried: tried.rank)
    assert "3 of 3 tried fit, by operations" in said
    assert said.endswith(f"best: {best.layout.overrides()}")
