"""More rows, fewer rows: what stays, what is new, and that slices are slices of the whole."""

import dataclasses

import jax
import numpy as np
import pytest
from layouts.tiny_models import MODELS, random_params

from glm_jax.config import MeshConfig
from glm_jax.errors import UserError
from glm_jax.layouts import parameters, read_all
from glm_jax.layouts.init_from import load_sharded
from glm_jax.layouts.resize import Resized
from glm_jax.layouts.sources import ArraySource
from glm_jax.model.glm import abstract_params
from glm_jax.parallel.sharding import make_sharding


def resized(layout: str, **sizes) -> tuple[dict, dict, Resized]:
    """Parameters before and after, by flattened name."""
    config = dataclasses.replace(MODELS[layout], param_dtype="float32")
    before = parameters.flatten(random_params(config))
    source = Resized(ArraySource(config, before), **sizes)
    return before, parameters.flatten(read_all(source)), source


@pytest.mark.parametrize("vocab_size", [120, 160, 200])
@pytest.mark.parametrize("layout", ["glm_2021", "glm4"])
def test_vocabulary(layout, vocab_size):
    before, after, source = resized(layout, vocab_size=vocab_size)
    kept = min(vocab_size, 160)
    assert after["token_embedding/embedding"].shape == (vocab_size, source.config.hidden_dim)
    for name, array in after.items():
        old = before[name]
        if name == "token_embedding/embedding":
            array, old = array[:kept], old[:kept]
        if name == "head/kernel":
            assert array.shape[1] == vocab_size
            array, old = array[:, :kept], old[:, :kept]
        np.testing.assert_array_equal(array, old, err_msg=name)
    change = {120: "the last 40 rows dropped", 200: "40 new rows"}.get(vocab_size)
    assert [change in line for line in source.describe()] == [True] * (
        0 if change is None else 1 if layout == "glm_2021" else 2
    )


def test_new_rows_are_fresh_and_depend_on_their_number_alone():
    _, small, source = resized("glm4", vocab_size=1160)
    _, large, _ = resized("glm4", vocab_size=1500)
    for name, axis in (("token_embedding/embedding", 0), ("head/kernel", 1)):
        new = np.moveaxis(small[name], axis, 0)[160:]
        np.testing.assert_array_equal(new, np.moveaxis(large[name], axis, 0)[160:1160])
        assert new.std() == pytest.approx(source.config.init_std, rel=0.02)
        assert len(np.unique(new[:, 0])) == len(new)


def test_rows_are_copied_where_they_are_named():
    before, after, source = resized("glm4", vocab_size=170, copy_rows=["7:9", "150:165"])
    for name, axis in (("token_embedding/embedding", 0), ("head/kernel", 1)):
        old, new = np.moveaxis(before[name], axis, 0), np.moveaxis(after[name], axis, 0)
        np.testing.assert_array_equal(new[[9, 165]], old[[7, 150]])
        rest = [i for i in range(160) if i != 9]
        np.testing.assert_array_equal(new[rest], old[rest])
    assert source.describe()[-2:] == [
        "vocabulary row 7 copied to 9",
        "vocabulary row 150 copied to 165",
    ]
    for wrong in ("7", "7:", "a:9", "7:170", "165:9"):
        with pytest.raises(UserError, match=wrong):
            resized("glm4", vocab_size=170, copy_rows=[wrong])


def test_position_tables_grow_and_are_never_cut():
    before, after, _ = resized("glm_2021", max_positions=100)
    for name in ("position_embedding/embedding", "block_position_embedding/embedding"):
        assert after[name].shape == (101, 48)
        np.testing.assert_array_equal(after[name][:65], before[name])
    assert (
        after["position_embedding/embedding"] != after["block_position_embedding/embedding"]
    ).any()
    with pytest.raises(UserError, match="64 positions and cannot be cut to 32"):
        resized("glm_2021", max_positions=32)
    with pytest.raises(UserError, match="rope_1d positions has no tables"):
        resized("glm4", max_positions=128)


@pytest.mark.parametrize(
    "sizes", [{"vocab_size": 200, "copy_rows": ["3:150"]}, {"max_positions": 127}, {}]
)
def test_shards_are_parts_of_the_whole(sizes):
    """Every mesh gets the same values, each device its own part."""
    layout = "glm_2021"
    _, whole, source = resized(layout, **sizes)
    sharding = make_sharding(MeshConfig(data=1, fsdp=2, model=2), jax.devices())
    shardings = sharding.tree(*abstract_params(source.config))
    loaded = parameters.flatten(load_sharded(source, shardings, "float32"))
    assert loaded.keys() == whole.keys()
    for name, array in loaded.items():
        assert array.sharding == parameters.flatten(shardings)[name]
        np.testing.assert_array_equal(np.asarray(array), whole[name], err_msg=name)
