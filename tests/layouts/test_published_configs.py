"""config.json of released models, written out by hand, read as the presets have them."""

import dataclasses

import pytest

from glm_jax.errors import UserError
from glm_jax.layouts import find_layout
from glm_jax.layouts.folder import _detect
from glm_jax.model.presets import preset

GLM_10B = {
    "architectures": ["GLMModel"],
    "attention_dropout_prob": 0.1,
    "attention_scale": 1.0,
    "block_position_encoding": True,
    "checkpoint_activations": False,
    "checkpoint_num_layers": 1,
    "embedding_dropout_prob": 0.1,
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "max_memory_length": 0,
    "max_sequence_length": 1024,
    "model_type": "glm",
    "num_attention_heads": 64,
    "num_layers": 48,
    "output_dropout_prob": 0.1,
    "output_predict": True,
    "parallel_output": True,
    "pool_token": "cls",
    "relative_encoding": False,
    "spell_func": "lstm",
    "spell_length": None,
    "torch_dtype": "float32",
    "vocab_size": 50304,
}
CHATGLM_6B = {
    "architectures": ["ChatGLMModel"],
    "bos_token_id": 130004,
    "eos_token_id": 130005,
    "gmask_token_id": 130001,
    "hidden_size": 4096,
    "inner_hidden_size": 16384,
    "layernorm_epsilon": 1e-05,
    "mask_token_id": 130000,
    "max_sequence_length": 2048,
    "model_type": "chatglm",
    "num_attention_heads": 32,
    "num_layers": 28,
    "pad_token_id": 3,
    "position_encoding_2d": True,
    "pre_seq_len": None,
    "prefix_projection": False,
    "quantization_bit": 0,
    "quantization_embeddings": False,
    "torch_dtype": "float16",
    "use_cache": True,
    "vocab_size": 130528,
}
CHATGLM2_6B = {
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_query_key_layer_scaling": True,
    "apply_residual_connection_post_layernorm": False,
    "attention_dropout": 0.0,
    "attention_softmax_in_fp32": True,
    "bias_dropout_fusion": True,
    "eos_token_id": 2,
    "ffn_hidden_size": 13696,
    "fp32_residual_connection": False,
    "hidden_dropout": 0.0,
    "hidden_size": 4096,
    "kv_channels": 128,
    "layernorm_epsilon": 1e-05,
    "model_type": "chatglm",
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "num_attention_heads": 32,
    "num_layers": 28,
    "original_rope": True,
    "pad_token_id": 0,
    "padded_vocab_size": 65024,
    "post_layer_norm": True,
    "pre_seq_len": None,
    "prefix_projection": False,
    "quantization_bit": 0,
    "rmsnorm": True,
    "seq_length": 32768,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_cache": True,
}
GLM4_9B_CHAT = CHATGLM2_6B | {
    "eos_token_id": [151329, 151336, 151338],
    "layernorm_epsilon": 1.5625e-07,
    "num_hidden_layers": 40,
    "num_layers": 40,
    "pad_token_id": 151329,
    "padded_vocab_size": 151552,
    "rope_ratio": 500,
    "seq_length": 131072,
    "torch_dtype": "bfloat16",
}
GLM4_9B_NATIVE = {  # it leaves rope_ratio out, as the converter of transformers does
    "architectures": ["GlmForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "eos_token_id": [151329, 151336, 151338],
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 13696,
    "max_position_embeddings": 131072,
    "model_type": "glm",
    "num_attention_heads": 32,
    "num_hidden_layers": 40,
    "num_key_value_heads": 2,
    "pad_token_id": 151329,
    "rms_norm_eps": 1.5625e-07,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 151552,
}
GLM4_0414_32B = GLM4_9B_NATIVE | {
    "architectures": ["Glm4ForCausalLM"],
    "attention_bias": False,
    "hidden_size": 6144,
    "intermediate_size": 23040,
    "max_position_embeddings": 32768,
    "model_type": "glm4",
    "num_attention_heads": 48,
    "num_hidden_layers": 61,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
}
PUBLISHED = {
    "glm_10b": ("glm_2021", GLM_10B),
    "glm_10b_chinese": ("glm_2021", GLM_10B | {"vocab_size": 50048}),
    "chatglm_6b": ("chatglm", CHATGLM_6B),
    "chatglm2_6b": ("chatglm2", CHATGLM2_6B),
    "chatglm3_6b": ("chatglm2", CHATGLM2_6B | {"rope_ratio": None, "classifier_dropout": None}),
    "glm4_9b": ("chatglm2", GLM4_9B_CHAT),
    "glm4_0414_32b": ("glm4", GLM4_0414_32B),
}
# Not in a config.json; alpha follows from the depth where it is 0.
_ELSEWHERE = {"init_std", "deepnorm_alpha", "vocab_multiple"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_the_preset(name):
    layout, hub = PUBLISHED[name]
    found, wanted = find_layout(layout).read_config(hub, {}), preset(name)
    found, expected = dataclasses.asdict(found), dataclasses.asdict(wanted)
    found["num_kv_heads"] %= expected["num_heads"]  # 0 means as many as there are heads
    assert {k: v for k, v in found.items() if k not in _ELSEWHERE} == {
        k: v for k, v in expected.items() if k not in _ELSEWHERE
    }
    read = find_layout(layout).read_config(hub, {})
    assert read.residual_scale == pytest.approx(wanted.residual_scale)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 1e6},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "rope_theta": None},
        {"rope_parameters": None, "rope_theta": 1e6},
        {"rope_scaling": {"rope_type": "default"}, "rope_theta": 1e6},
    ],
)
def test_every_way_to_write_the_native_base(rope):
    config = find_layout("glm").read_config(GLM4_9B_NATIVE | rope, {})
    assert (config.rope_base, config.rope_fraction) == (1e6, 0.5)


@pytest.mark.parametrize(
    ("layout", "hub", "message"),
    [
        ("chatglm2", CHATGLM2_6B | {"rope_ratio": 16}, "rope_ratio is 16: ChatGLM2 divides"),
        ("chatglm", CHATGLM_6B | {"pre_seq_len": 128}, "pre_seq_len is 128"),
        ("glm", GLM4_9B_NATIVE | {"rope_parameters": []}, "rope_parameters must be an object"),
        ("glm", GLM4_9B_NATIVE | {"rope_parameters": {"type": "yarn"}}, "type is 'yarn'"),
        (
            "glm",
            GLM4_9B_NATIVE | {"rope_scaling": {"rope_type": "linear"}},
            "rope_type is 'linear'",
        ),
    ],
)
def test_what_is_not_computed_is_refused(layout, hub, message):
    with pytest.raises(UserError, match=message):
        find_layout(layout).read_config(hub, {})


def test_chatglm3_scales_the_base():
    hub = CHATGLM2_6B | {"rope_ratio": 50, "_name_or_path": "THUDM/chatglm3-6b-32k"}
    assert find_layout("chatglm2").read_config(hub, {}).rope_base == 500_000.0


def test_a_head_of_its_own_is_said_to_the_published_class():
    """Without the field transformers 4 ties the head of ChatGLM-6B to its words."""
    written = find_layout("chatglm").write_config(preset("chatglm_6b"))
    assert written["tie_word_embeddings"] is False


def test_layouts_are_told_apart_by_tensors(tmp_path):
    for name, (layout, hub) in PUBLISHED.items():
        config = find_layout(layout).read_config(hub, {})
        tensors = find_layout(layout).tensor_shapes(config)
        assert _detect("auto", tmp_path, hub, tensors).name == layout, name
