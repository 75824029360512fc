"""What the backward pass of a layer computes again under each policy."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from training.samples import make_batch, tiny_config

from glm_jax.config import ModelConfig, from_dict, to_dict
from glm_jax.config_checks import REMAT_NAMES
from glm_jax.errors import UserError
from glm_jax.model import glm
from glm_jax.model.remat import computed_again

GATED = {"activation": "swiglu", "residual": "sandwich", "norm": "rmsnorm"}
SOME = ("attention_out", "attention_lse", "residual")


def backward_products(config: ModelConfig) -> int:
    """Matrix products in the body of the backward loop over layers, in the traced program."""
    rows = make_batch(0)
    arguments = (rows.tokens, rows.position, rows.block_position, rows.kv_start, rows.kv_end)
    params = jax.eval_shape(lambda: glm.init_params(config, jax.random.key(0)))
    traced = jax.make_jaxpr(
        jax.grad(lambda p: jnp.sum(glm.apply_hidden(config, p, *arguments) ** 2))
    )(params)
    loops = [e for e in traced.eqns if e.primitive.name == "scan" and e.params["length"] == 2]
    return str(loops[-1]).count("dot_general[")


@pytest.mark.parametrize(
    "changes", [{}, GATED, {"residual": "deepnorm"}], ids=["pre", "gated", "dn"]
)
@pytest.mark.parametrize(
    ("remat", "saved"),
    [
        ("selective", REMAT_NAMES),
        ("offload", REMAT_NAMES),
        ("selective", SOME),
        ("full", REMAT_NAMES),
    ],
)
def test_a_policy_repeats_the_products_it_says(changes, remat, saved):
    plain = dataclasses.replace(tiny_config().model, **changes)
    config = dataclasses.replace(plain, remat=remat, remat_saved=saved)
    again = computed_again(config)
    products = sum(2 if name == "attention" else 1 for name in again)
    assert backward_products(config) == backward_products(plain) + products
    assert bool(again) == (remat == "full" or saved == SOME)


def test_an_unknown_array_is_refused():
    values = to_dict(tiny_config())
    values["model"]["remat_saved"] = ("qkv", "scores")
    with pytest.raises(
        UserError, match=r"config.model.remat_saved must be one of .*, got 'scores'"
    ):
        from_dict(values)
