"""Parameters of the presets against published counts, published files and transformers."""

import dataclasses
import math

import jax
import pytest

from glm_jax.config import ModelConfig
from glm_jax.errors import UserError
from glm_jax.model import glm
from glm_jax.model.presets import PRESETS, preset

GLM_2021 = {  # as their authors round them
    "glm_base": 110e6,
    "glm_large": 335e6,
    "glm_doc": 335e6,
    "glm_410m": 410e6,
    "glm_515m": 515e6,
    "glm_2b": 2e9,
    "glm_10b": 9.88e9,
    "glm_10b_chinese": 9.88e9,
}
# Larger tables than BERT's; their authors call them 335M all the same.
LARGER_TABLES = ("glm_roberta", "glm_large_chinese")


def count(model: ModelConfig) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(glm.abstract_params(model)[0]))


@pytest.mark.parametrize("name", [*GLM_2021, *LARGER_TABLES])
def test_glm_2021(name):
    m = preset(name)
    h = m.hidden_dim
    assert m.mlp_dim == 4 * h
    assert m.head_dim == 64
    tables = (m.vocab_size + 2 * (m.max_positions + 1)) * h
    assert count(m) == tables + m.num_layers * (12 * h**2 + 13 * h) + 2 * h


@pytest.mark.parametrize("name", GLM_2021)
def test_names_of_glm_2021_are_sizes(name):
    tolerance = {"glm_2b": 0.05}.get(name, 0.01)
    assert count(preset(name)) == pytest.approx(GLM_2021[name], rel=tolerance)


def test_glm_130b():
    m = preset("glm_130b")
    h, inner = 12288, 32768
    attention, mlp = 4 * h**2 + 4 * h, 3 * h * inner + 2 * inner + h
    assert count(m) == 150528 * h + 70 * (attention + mlp + 4 * h) + 2 * h


def test_chatglm_6b_is_as_large_as_its_files():
    """Its index counts the vocabulary of the first release and keeps norms in float32."""
    m = dataclasses.replace(preset("chatglm_6b"), vocab_size=150528)
    norms = (2 * m.num_layers + 1) * 2 * m.hidden_dim
    frequencies = m.num_layers * 32
    assert 2 * (count(m) + norms + frequencies) == 13_744_473_856


@pytest.mark.parametrize("name", ["chatglm2_6b", "chatglm3_6b"])
def test_chatglm2_6b_is_as_large_as_its_files(name):
    frequencies = 32
    assert 2 * (count(preset(name)) + frequencies) == 12_487_168_064


@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "family", "tensors"),
    [
        ("chatglm2_6b", "Glm", 28 * 11 + 3),
        ("chatglm3_6b", "Glm", 28 * 11 + 3),
        ("glm4_9b", "Glm", 443),
        ("glm4_0414_9b", "Glm4", 523),
        ("glm4_0414_32b", "Glm4", 61 * 10 + 3),
    ],
)
def test_transformers_has_as_many(name, family, tensors):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    m = preset(name)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=m.vocab_size,
        num_hidden_layers=m.num_layers,
        hidden_size=m.hidden_dim,
        intermediate_size=m.mlp_dim,
        num_attention_heads=m.num_heads,
        num_key_value_heads=m.kv_heads,
        head_dim=m.head_dim,
        attention_bias=m.qkv_bias,
        pad_token_id=None,
    )
    with torch.device("meta"):
        model = getattr(transformers, f"{family}ForCausalLM")(config)
    assert len(model.state_dict()) == tensors
    assert sum(p.numel() for p in model.parameters()) == count(m)


@pytest.mark.torch
@pytest.mark.parametrize(("name", "family"), [("glm4_9b", "Glm"), ("glm4_0414_9b", "Glm4")])
def test_sizes_are_the_defaults_of_transformers(name, family):
    transformers = pytest.importorskip("transformers")
    published, m = getattr(transformers, f"{family}Config")(), preset(name)
    assert (published.num_hidden_layers, published.hidden_size) == (m.num_layers, m.hidden_dim)
    assert (published.num_attention_heads, published.head_dim) == (m.num_heads, m.head_dim)
    assert (published.num_key_value_heads, published.attention_bias) == (m.kv_heads, m.qkv_bias)
    assert (published.intermediate_size, published.vocab_size) == (m.mlp_dim, m.vocab_size)


def test_glm4_sizes():
    assert count(preset("glm4_9b")) == pytest.approx(9.400e9, abs=5e5)
    m = preset("glm4_0414_32b")
    assert (m.num_layers, m.hidden_dim, m.num_heads, m.kv_heads) == (61, 6144, 48, 2)
    assert (m.mlp_dim, m.qkv_bias) == (23040, False)


@pytest.mark.parametrize("name", PRESETS)
def test_padded_vocabularies(name):
    """Tables divide over eight devices, as the published files were."""
    assert PRESETS[name].vocab_size % 8 == 0


def test_unknown_preset():
    with pytest.raises(UserError, match="no model preset 'glm_huge'; known: glm_base, "):
        preset("glm_huge")
