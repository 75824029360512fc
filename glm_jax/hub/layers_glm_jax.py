"""The layers of GLM in PyTorch: rotary positions, norms, attention, mlp and their residuals."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN


def rotary_angles(config, position_ids, dtype):
    """Angles of the dimensions of a head that turn.

    "rope_1d" turns the first `rope_fraction` of a head with the position; "rope_2d" its first half
    with the position and its second half with the block position (ChatGLM-6B).

    Args:
      position_ids: int64 [B, 2, T].
      dtype: of the activations; angles are float32, or float64 for float64 models.

    Returns:
      cos, sin: `dtype` [B, 1, T, G, n / 2] for G positions that turn n dimensions each.
    """
    wide = torch.promote_types(dtype, torch.float32)
    head_dim = config.hidden_size // config.num_attention_heads
    if config.position_type == "rope_2d":
        coordinates, turned = position_ids, head_dim // 2
    else:
        coordinates, turned = position_ids[:, :1], round(head_dim * config.rope_fraction)
    exponent = torch.arange(0, turned, 2, dtype=wide, device=position_ids.device) / turned
    angle = coordinates.transpose(1, 2)[..., None].to(wide) * config.rope_base**-exponent
    return angle[:, None].cos().to(dtype), angle[:, None].sin().to(dtype)


def rotate(x, cos, sin, interleaved):
    """Turns the first dimensions of heads [B, H, T, d] by `rotary_angles`; the rest stays."""
    groups, pairs = cos.shape[-2:]
    turned = 2 * groups * pairs
    turning, rest = x[..., :turned], x[..., turned:]
    # The pair of a dimension is its neighbour, or half a group away.
    split, axis = ((pairs, 2), -1) if interleaved else ((2, pairs), -2)
    first, second = turning.unflatten(-1, (groups, *split)).unbind(axis)
    parts = [first * cos - second * sin, second * cos + first * sin]
    return torch.cat([torch.stack(parts, dim=axis).flatten(-3), rest], dim=-1)


class GLMJaxRMSNorm(nn.Module):
    """Root-mean-square normalisation in float32 or wider; the weight counts before the cast."""

    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return (normed * self.weight).to(x.dtype)


def make_norm(config):
    kind = {"layernorm": nn.LayerNorm, "rmsnorm": GLMJaxRMSNorm}[config.norm_type]
    return kind(config.hidden_size, eps=config.layer_norm_eps)


class GLMJaxAttention(nn.Module):
    """Attention in which groups of query heads share a head of keys and values."""

    def __init__(self, config, layer_index):
        super().__init__()
        self.layer_index = layer_index
        width, self.head_dim = config.hidden_size, config.hidden_size // config.num_attention_heads
        shared = config.num_key_value_heads * self.head_dim
        self.queries_per_key = config.num_attention_heads // config.num_key_value_heads
        self.interleaved = config.rope_layout == "interleaved"
        self.q_proj = nn.Linear(width, width, bias=config.qkv_bias)
        self.k_proj = nn.Linear(width, shared, bias=config.qkv_bias)
        self.v_proj = nn.Linear(width, shared, bias=config.qkv_bias)
        self.o_proj = onto_residual(nn.Linear(width, width, bias=config.linear_bias))

    def forward(self, x, visible, rope, cache):
        query, key, value = (
            project(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if rope is not None:
            query, key = (rotate(x, *rope, self.interleaved) for x in (query, key))
        if cache is not None:
            key, value = cache.update(key, value, self.layer_index)
        key, value = (repeat_heads(x, self.queries_per_key) for x in (key, value))
        # A padding query sees nothing. It gets every key, so that its softmax exists, and a zero.
        sees_nothing = ~visible.any(-1, keepdim=True)
        x = F.scaled_dot_product_attention(query, key, value, attn_mask=visible | sees_nothing)
        x = x.masked_fill(sees_nothing, 0)
        return self.o_proj(x.transpose(1, 2).flatten(-2))


class GLMJaxMLP(nn.Module):
    """down(act(up(x))), or down(act(gate(x)) * up(x)) where it is gated."""

    def __init__(self, config):
        super().__init__()
        width, inner, bias = config.hidden_size, config.intermediate_size, config.linear_bias
        self.gate_proj = nn.Linear(width, inner, bias=bias) if config.gated_mlp else None
        self.up_proj = nn.Linear(width, inner, bias=bias)
        self.activation = ACT2FN[config.hidden_act]
        self.down_proj = onto_residual(nn.Linear(inner, width, bias=bias))

    def forward(self, x):
        if self.gate_proj is None:
            return self.down_proj(self.activation(self.up_proj(x)))
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))


class GLMJaxLayer(nn.Module):
    """Attention and mlp with one of the three residuals that GLMJaxConfig describes."""

    def __init__(self, config, layer_index):
        super().__init__()
        is_sandwich = config.residual_type == "sandwich"
        self.input_layernorm = make_norm(config)
        self.self_attn = GLMJaxAttention(config, layer_index)
        self.post_self_attn_layernorm = make_norm(config) if is_sandwich else nn.Identity()
        self.post_attention_layernorm = make_norm(config)
        self.mlp = GLMJaxMLP(config)
        self.post_mlp_layernorm = make_norm(config) if is_sandwich else nn.Identity()
        self.dropout = nn.Dropout(config.output_dropout)
        self.alpha = config.deepnorm_alpha if config.residual_type == "deepnorm" else None

    def forward(self, x, visible, rope, cache):
        normed = self.input_layernorm(x)
        attended = self.self_attn(normed, visible, rope, cache)
        x = self.residual(x, normed) + self.dropout(self.post_self_attn_layernorm(attended))
        normed = self.post_attention_layernorm(x)
        out = self.post_mlp_layernorm(self.mlp(normed))
        return self.residual(x, normed) + self.dropout(out)

    def residual(self, x, normed):
        return x if self.alpha is None else self.alpha * normed


def repeat_heads(x, times):
    """[B, K, T, d] -> [B, K * times, T, d], each head so many times in a row."""
    return x.unsqueeze(2).expand(-1, -1, times, -1, -1).flatten(1, 2)


def onto_residual(linear):
    """Marks a projection onto the residual stream, which starts smaller by sqrt(2 L)."""
    linear.onto_residual = True
    return linear
