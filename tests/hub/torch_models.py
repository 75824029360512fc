"""The torch class in float64, with weights of ours."""

import torch
from layouts.tiny_models import random_params

from glm_jax import layouts
from glm_jax.config import ModelConfig
from glm_jax.hub.configuration_glm_jax import GLMJaxConfig
from glm_jax.hub.modeling_glm_jax import GLMJaxForBlankInfilling
from glm_jax.tokenizer import SPECIAL_PIECES

NUM_CONTROL = len(SPECIAL_PIECES)
_HUB_ONLY = ("architectures", "auto_map", "model_type")


def torch_model(config: ModelConfig, params: dict | None = None, **overrides):
    """Random weights unless `params` (ours) are given; `overrides` are fields of GLMJaxConfig."""
    torch.manual_seed(0)
    fields = layouts.find_layout("glm_jax").write_config(config)
    fields = {key: value for key, value in fields.items() if key not in _HUB_ONLY}
    hub = GLMJaxConfig(**fields, tokenizer_vocab_size=config.vocab_size, **overrides)
    model = GLMJaxForBlankInfilling(hub).double().eval()
    if params is not None:
        tensors = layouts.export_tensors("glm_jax", params, config)
        state = {name: torch.from_numpy(array) for name, array in tensors.items()}
        missing, unexpected = model.load_state_dict(state, strict=False)
        assert (missing, unexpected) == (["lm_head.weight"] * config.tie_embeddings, [])
    return model


def random_model(config: ModelConfig, **overrides):
    """Of `random_params`; like an export, it never answers with a control symbol."""
    model = torch_model(config, random_params(config), **overrides)
    model.generation_config.suppress_tokens = list(range(NUM_CONTROL))
    return model
