"""The files beside the weights: config, generation config, model code and model card."""

import importlib.resources
import json
from pathlib import Path

import huggingface_hub

from glm_jax.config import ModelConfig
from glm_jax.tokenizer import Tokenizer

MODEL_CODE = ("configuration_glm_jax.py", "blanks_glm_jax.py", "modeling_glm_jax.py")
MODEL_TYPE = "glm_jax_infilling"
_HIDDEN_ACT = {"gelu_tanh": "gelu_pytorch_tanh", "gelu": "gelu"}
_MODEL_CLASS = "modeling_glm_jax.GLMJaxForBlankInfilling"


def write_model_files(config: ModelConfig, tokenizer: Tokenizer, out: Path, dtype: str) -> None:
    """Writes config.json, generation_config.json, the model code and README.md into `out`."""
    _write_json(out / "config.json", hub_config(config, tokenizer, dtype))
    _write_json(out / "generation_config.json", _generation_config(config, tokenizer))
    for name in MODEL_CODE:
        (out / name).write_bytes(_package_file(name))
    _model_card(config, tokenizer, dtype).save(out / "README.md")


def hub_config(config: ModelConfig, tokenizer: Tokenizer, dtype: str) -> dict:
    """`config.json`: arguments of GLMJaxConfig, and where its classes are."""
    special = tokenizer.special
    return {
        "architectures": ["GLMJaxForBlankInfilling"],
        "auto_map": {
            "AutoConfig": "configuration_glm_jax.GLMJaxConfig",
            "AutoModel": "modeling_glm_jax.GLMJaxModel",
            "AutoModelForSeq2SeqLM": _MODEL_CLASS,
            "AutoModelForCausalLM": _MODEL_CLASS,
        },
        "model_type": MODEL_TYPE,
        "vocab_size": config.vocab_size,
        "tokenizer_vocab_size": tokenizer.vocab_size,
        "hidden_size": config.hidden_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_dim,
        "max_position_embeddings": config.max_positions,
        "position_type": config.position,
        "rope_base": config.rope_base,
        "residual_type": config.residual,
        "deepnorm_alpha": config.residual_scale if config.residual == "deepnorm" else 0.0,
        "hidden_act": _HIDDEN_ACT[config.activation],
        "layer_norm_eps": config.norm_eps,
        "embedding_dropout": config.embedding_dropout,
        "output_dropout": config.output_dropout,
        "initializer_range": config.init_std,
        "tie_word_embeddings": config.tie_embeddings,
        "pad_token_id": special.pad,
        "eos_token_id": special.eos,
        "cls_token_id": special.cls,
        "mask_token_ids": [special.mask, special.smask, special.gmask],
        "sop_token_id": special.sop,
        "eop_token_id": special.eop,
        "torch_dtype": dtype,  # the name that transformers 4.x knows; 5.x reads it too
    }


def _generation_config(config: ModelConfig, tokenizer: Tokenizer) -> dict:
    special = tokenizer.special
    stops = [special.eop, special.eos]
    padding = range(tokenizer.vocab_size, config.vocab_size)
    never = sorted({*tokenizer.control_ids.tolist(), *padding} - set(stops))
    return {
        "eos_token_id": stops,
        "pad_token_id": special.pad,
        "suppress_tokens": never,
        "max_new_tokens": min(64, config.max_positions),
    }


def _model_card(config: ModelConfig, tokenizer: Tokenizer, dtype: str) -> huggingface_hub.ModelCard:
    data = huggingface_hub.ModelCardData(
        language=["en", "zh"],
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["glm", "blank-infilling", "custom_code"],
    )
    gelu = "tanh" if config.activation == "gelu_tanh" else "erf"
    template = _package_file("model_card.md").decode()
    return huggingface_hub.ModelCard(
        template.format(
            metadata=data.to_yaml(),
            layers=config.num_layers,
            width=config.hidden_dim,
            position="learned" if config.position == "learned_2d" else "rotary",
            max_positions=config.max_positions,
            residual="pre-LN" if config.residual == "pre" else "DeepNorm",
            gelu=gelu,
            dtype=dtype,
            tokenizer_size=tokenizer.vocab_size,
            vocab_size=config.vocab_size,
            fingerprint=tokenizer.fingerprint,
        )
    )


def _package_file(name: str) -> bytes:
    return (importlib.resources.files("glm_jax.hub") / name).read_bytes()


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
