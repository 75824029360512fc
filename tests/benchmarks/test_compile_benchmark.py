"""The benchmark of what a step costs beside its mathematics."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from commands import run_command

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "benchmarks"))

import compile as benchmark
from packed_rows import glm_rows

from glm_jax.parallel.sharding import make_sharding
from glm_jax.training.step import init_state, make_train_step


@pytest.mark.slow
def test_the_bare_step_trains_as_the_training_step():
    config = benchmark.toy_config(width=16, layers=1)
    sharding = make_sharding(config.mesh, jax.devices()[:1])
    rows = glm_rows(np.random.default_rng(0), 4, 32, 2, vocab_size=benchmark.VOCAB)
    ends = [
        jax.device_get(step(init_state(config, sharding), sharding.place(rows))[0].params)
        for step in (
            make_train_step(config, sharding, num_sources=1),
            benchmark.bare_step(config, sharding),
        )
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-7), *ends)


@pytest.mark.slow
def test_every_part_but_the_start_of_a_run_reports():
    sizes = "--layers=1", "--width=16", "--calls=3", "--price-width=16", "--price-layers=1"
    finished = run_command(
        "benchmarks/compile.py", "--parts=compile,dispatch,price", "--price-rounds=2", *sizes
    )
    assert finished.returncode == 0, finished.stderr
    assert "| layers | loop: first step s | written out: first step s |" in finished.stdout
    assert "| call the step | " in finished.stdout
    assert "| CPU seconds | " in finished.stdout
