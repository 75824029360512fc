"""GLM 2021: the original checkpoints and the hub's remote-code class, which share their names.

Source: THUDM/GLM `modeling_glm.py` and `change_mp.py`. The fused projection is [Q; K; V], three
equal blocks (of each rank, where there are several). The checkpoints were trained with tanh GELU;
the hub class computes erf GELU.
"""

from collections.abc import Mapping
from typing import Any

from glm_jax.config import ModelConfig
from glm_jax.errors import UserError
from glm_jax.layouts.published_config import Fields, model_config, num_layers
from glm_jax.layouts.table import Block, Layout, Row, Same, norm, projection

_LAYER = "transformer.layers.{i}."
_QKV = _LAYER + "attention.query_key_value"
_POSITIONS = "transformer.position_embeddings.weight"
_BLOCK_POSITIONS = "transformer.block_position_embeddings.weight"
_HEAD_DIM = 64  # of every released size; files without a config.json do not say it


def _third(index: int) -> Block:
    return Block(index, ("heads", "kv_heads", "kv_heads"))


def read_config(
    hub: Mapping[str, Any] | None, shapes: Mapping[str, tuple[int, ...]]
) -> ModelConfig:
    """The model of a hub config, or of the shapes of an original checkpoint."""
    shapes = {name.removeprefix("glm."): shape for name, shape in shapes.items()}
    if hub is None:
        vocab_size, hidden = shapes["word_embeddings.weight"]
        return model_config(
            vocab_size=vocab_size,
            num_layers=num_layers(shapes, _QKV + ".weight"),
            hidden_dim=hidden,
            num_heads=hidden // _HEAD_DIM,
            mlp_dim=4 * hidden,
            max_positions=shapes[_POSITIONS][0] - 1,
        )
    fields = Fields(hub)
    fields.must_be("block_position_encoding", True)
    fields.must_be("relative_encoding", False)
    hidden = fields.size("hidden_size")
    return model_config(
        vocab_size=fields.size("vocab_size"),
        num_layers=fields.size("num_layers"),
        hidden_dim=hidden,
        num_heads=fields.size("num_attention_heads"),
        mlp_dim=4 * hidden,
        max_positions=fields.size("max_sequence_length"),
        init_std=fields.number("initializer_range", 0.02),
        embedding_dropout=fields.number("embedding_dropout_prob", 0.1),
        output_dropout=fields.number("output_dropout_prob", 0.1),
    )


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The architecture as the hub's GLMConfig has it."""
    code = "THUDM/glm-10b--"
    return {
        "architectures": ["GLMForConditionalGeneration"],
        "model_type": "glm",
        "auto_map": {
            "AutoConfig": code + "configuration_glm.GLMConfig",
            "AutoModel": code + "modeling_glm.GLMModel",
            "AutoModelForSeq2SeqLM": code + "modeling_glm.GLMForConditionalGeneration",
            "AutoModelForMultipleChoice": code + "modeling_glm.GLMForMultipleChoice",
        },
        "num_layers": config.num_layers,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_dim,
        "num_attention_heads": config.num_heads,
        "embedding_dropout_prob": config.embedding_dropout,
        "attention_dropout_prob": 0.0,
        "output_dropout_prob": config.output_dropout,
        "max_sequence_length": config.max_positions,
        "checkpoint_activations": False,
        "checkpoint_num_layers": 1,
        "parallel_output": True,
        "relative_encoding": False,
        "block_position_encoding": True,
        "output_predict": True,
        "spell_length": None,
        "spell_func": "lstm",
        "attention_scale": 1.0,
        "initializer_range": config.init_std,
        "pool_token": "cls",
        "max_memory_length": 0,
    }


def _check_class(config: ModelConfig) -> None:
    for field, fixed in (("mlp_dim", 4 * config.hidden_dim), ("norm_eps", 1e-5)):
        if getattr(config, field) != fixed:
            raise UserError(
                f"layout glm_2021: the published class has model.{field} = {fixed:g} at this "
                f"width, this model has {getattr(config, field):g}"
            )


LAYOUT = Layout(
    name="glm_2021",
    prefix="glm.",
    check_code=_check_class,
    read_config=read_config,
    write_config=write_config,
    requires={
        "block_positions": (True,),
        "position": ("learned_2d",),
        "residual": ("pre",),
        "norm": ("layernorm",),
        "activation": ("gelu_tanh", "gelu"),
        "is_grouped": (False,),
        "qkv_bias": (True,),
        "linear_bias": (True,),
        "tie_embeddings": (True,),
    },
    serves={"activation": "gelu", "span_position": "blank", "context": "bidirectional"},
    rows=(
        Row("token_embedding/embedding", "word_embeddings.weight", Same()),
        Row("position_embedding/embedding", _POSITIONS, Same()),
        Row("block_position_embedding/embedding", _BLOCK_POSITIONS, Same()),
        *norm("layers/attention_norm", _LAYER + "input_layernorm"),
        *projection("layers/attention/query", _QKV, fused=_third(0)),
        *projection("layers/attention/key", _QKV, fused=_third(1)),
        *projection("layers/attention/value", _QKV, fused=_third(2)),
        *projection("layers/attention/out", _LAYER + "attention.dense", inputs=2),
        *norm("layers/mlp_norm", _LAYER + "post_attention_layernorm"),
        *projection("layers/mlp/up", _LAYER + "mlp.dense_h_to_4h"),
        *projection("layers/mlp/down", _LAYER + "mlp.dense_4h_to_h"),
        *norm("final_norm", "transformer.final_layernorm"),
    ),
)
