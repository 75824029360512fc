"""Layout tables: round trips of published weights, and what a wrong checkpoint is told."""

import dataclasses
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from layouts.tiny_models import MODELS, assert_same, random_params

from glm_jax import layouts
from glm_jax.config import ModelConfig
from glm_jax.errors import UserError
from glm_jax.layouts import parameters
from glm_jax.layouts.safetensors_files import SafetensorsFiles

CONFIGS = {
    "glm_2021": MODELS["glm_2021"],
    "chatglm_v1": dataclasses.replace(MODELS["chatglm"], hidden_dim=64, mlp_dim=256),
}
CONFIGS["glm_2021_scaled"] = CONFIGS["glm_2021"]
LAYOUT_OF = {"glm_2021": "glm_2021", "glm_2021_scaled": "glm_2021", "chatglm_v1": "chatglm"}


def _fixture_weights(fixtures: Path, name: str) -> dict[str, np.ndarray]:
    tensors = SafetensorsFiles(fixtures / f"{name}.safetensors")
    return {k.removeprefix("param."): tensors[k] for k in tensors if k.startswith("param.")}


@pytest.mark.parametrize("name", LAYOUT_OF)
def test_published_weights_come_back_bit_for_bit(fixtures, name):
    theirs = _fixture_weights(fixtures, name)
    params = layouts.load_params(LAYOUT_OF[name], theirs, CONFIGS[name])
    back = dict(layouts.export_tensors(LAYOUT_OF[name], params, CONFIGS[name]))
    assert {k.removeprefix("glm.") for k in theirs} == back.keys()
    for key, array in theirs.items():
        assert back[key.removeprefix("glm.")].tobytes() == array.tobytes(), key


@pytest.mark.parametrize("name", ["glm_2021", "chatglm_v1"])
def test_every_layout_returns_what_it_was_given(name):
    params = random_params(CONFIGS[name])
    for layout in (LAYOUT_OF[name], "glm_jax"):
        tensors = dict(layouts.export_tensors(layout, params, CONFIGS[name]))
        assert_same(layouts.load_params(layout, tensors, CONFIGS[name]), params)
        shapes = layouts.find_layout(layout).tensor_shapes(CONFIGS[name])
        assert list(shapes.items()) == [(k, v.shape) for k, v in tensors.items()]


def test_fused_rows_are_where_the_published_code_reads_them():
    """Thirds for GLM, per head for ChatGLM, from arrays whose values spell (part, head, row)."""
    thirds, per_head = CONFIGS["glm_2021"], CONFIGS["chatglm_v1"]
    params = layouts.load_params("glm_2021", _labelled(thirds, "thirds"), thirds)
    _check_labels(params, thirds)
    params = layouts.load_params("chatglm", _labelled(per_head, "per_head"), per_head)
    _check_labels(params, per_head)


def _labelled(config: ModelConfig, order: str) -> dict[str, np.ndarray]:
    layout = "glm_2021" if order == "thirds" else "chatglm"
    tensors = {k: np.zeros(s) for k, s in layouts.find_layout(layout).tensor_shapes(config).items()}
    part, head, row = np.meshgrid(
        np.arange(3), np.arange(config.num_heads), np.arange(config.head_dim), indexing="ij"
    )
    label = part * 10_000 + head * 100 + row  # [3, H, d]
    if order == "per_head":
        label = label.transpose(1, 0, 2)
    name = "transformer.layers.1.attention.query_key_value.bias"
    return tensors | {name: label.reshape(-1).astype(float)}


def _check_labels(params: dict, config: ModelConfig) -> None:
    for part, name in enumerate(("query", "key", "value")):
        bias = params["layers"]["attention"][name]["bias"][1]
        head, row = np.meshgrid(
            np.arange(config.num_heads), np.arange(config.head_dim), indexing="ij"
        )
        np.testing.assert_array_equal(bias, part * 10_000 + head * 100 + row)


def test_rotary_buffers_and_the_prefix_are_accepted():
    config = CONFIGS["chatglm_v1"]
    tensors = dict(layouts.export_tensors("chatglm", random_params(config), config))
    tensors["transformer.layers.0.attention.rotary_emb.inv_freq"] = np.zeros(32)
    layouts.load_params("chatglm", tensors, config)


def test_missing_and_left_over_tensors_are_listed():
    config = CONFIGS["glm_2021"]
    tensors = dict(layouts.export_tensors("glm_2021", random_params(config), config))
    tensors["extra.weight"] = tensors.pop("word_embeddings.weight")
    with pytest.raises(UserError, match=r"missing word_embeddings.weight; unexpected extra.weight"):
        layouts.load_params("glm_2021", tensors, config)


def test_a_prefixed_duplicate_is_left_over():
    config = CONFIGS["glm_2021"]
    tensors = dict(layouts.export_tensors("glm_2021", random_params(config), config))
    tensors["glm.word_embeddings.weight"] = tensors["word_embeddings.weight"]
    with pytest.raises(UserError, match=r"unexpected glm.word_embeddings.weight"):
        layouts.load_params("glm_2021", tensors, config)


def test_a_wrong_shape_names_the_tensor_and_both_shapes():
    config = CONFIGS["glm_2021"]
    tensors = dict(layouts.export_tensors("glm_2021", random_params(config), config))
    wider = dataclasses.replace(config, vocab_size=200)
    with pytest.raises(UserError, match=r"word_embeddings.weight .*\(160, 48\).*\(200, 48\)"):
        layouts.load_params("glm_2021", tensors, wider)


def test_a_layout_refuses_a_model_it_cannot_hold():
    config = CONFIGS["chatglm_v1"]
    with pytest.raises(UserError, match=r"glm_2021 needs model.position = 'learned_2d'"):
        layouts.find_layout("glm_2021").check_fits(config)
    with pytest.raises(UserError, match="layout must be one of"):
        layouts.find_layout("gpt2")


def test_parameters_of_another_model_are_refused():
    config = CONFIGS["glm_2021"]
    params = random_params(config)
    with pytest.raises(UserError, match=r"token_embedding/embedding has shape \(160, 48\)"):
        dict(layouts.export_tensors("glm_jax", params, dataclasses.replace(config, vocab_size=8)))
    untied = dataclasses.replace(config, tie_embeddings=False)
    with pytest.raises(UserError, match="head/kernel"):
        dict(layouts.export_tensors("glm_jax", params, untied))


def test_bfloat16_rounds_to_nearest():
    config = CONFIGS["glm_2021"]
    params = random_params(config)
    tensors = layouts.export_tensors("glm_jax", params, config, "bfloat16")
    tensor = tensors["model.embed_tokens.weight"]
    expected = params["token_embedding"]["embedding"].astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(tensor, expected)


def test_shapes_agree_with_the_model():
    glm = pytest.importorskip("glm_jax.model.glm")
    for config in CONFIGS.values():
        model = {k: v.shape for k, v in parameters.flatten(glm.abstract_params(config)[0]).items()}
        assert model == parameters.shapes(config)


@pytest.mark.parametrize(
    ("name", "position"),
    [("glm_2021", "learned_2d"), ("chatglm", "rope_2d"), ("glm_jax", "rope_2d")],
)
def test_no_layout_serves_answers_without_block_positions(name, position):
    config = ModelConfig(position=position, block_positions=False)
    with pytest.raises(UserError, match=f"layout {name} needs model.block_positions = True"):
        layouts.find_layout(name).check_fits(config)
