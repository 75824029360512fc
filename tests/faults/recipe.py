"""A run of seconds whose every step and save can be hit."""

import ml_collections

from glm_jax import config


def get_config() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict(config.default_dict())
    c.model.update(
        vocab_multiple=8,
        num_layers=1,
        hidden_dim=32,
        num_heads=2,
        mlp_dim=64,
        max_positions=64,
        dtype="float32",
        output_dropout=0.1,
    )
    c.data.seq_length = 64
    c.optimizer.update(learning_rate=1e-2, warmup_steps=2, ema_decay=0.9)
    c.training.update(steps=100, batch_size=4, log_every=1, eval_every=50, eval_rows=8)
    c.checkpoint.every = 5
    return c
