"""GLM of 2021 and its training step in PyTorch, the plain way: what `reference_run.py` compares to.

Written from the paper (Du et al. 2021) and the names, shapes and rules of the published training
code (THUDM/GLM), and independent of `glm_jax`: dense attention under an explicit [T, T] mask, dense
logits, torch's AdamW. It is slow and short on purpose. Dropout is left out.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

MASKED_SCORE = -65504.0  # of the published float16 code; no weight is left of it in float32 either


class Shape(NamedTuple):
    vocab_size: int
    num_layers: int
    hidden_size: int
    num_heads: int
    mlp_size: int
    max_positions: int  # P; both position tables have P + 1 rows
    gelu: str = "tanh"  # as trained; "none" is the erf GELU of the hub class
    norm_eps: float = 1e-5


class Recipe(NamedTuple):
    learning_rate: float  # at the end of the warm-up
    warmup_steps: int
    decay_steps: int  # warm-up and decay together
    final_ratio: float  # of the peak, from the end of the decay on
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    clip_norm: float


class Update(NamedTuple):
    loss: float  # mean over the targets of the batch, before the update
    grad_norm: float  # before clipping
    learning_rate: float
    row_losses: np.ndarray  # [B], sums over the targets of a row


class GLM(nn.Module):
    """The state dict has the published names: word_embeddings.weight, transformer.layers.0..."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.word_embeddings = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.transformer = Transformer(shape)

    def forward(self, tokens, position_ids, mask):
        """Logits [B, T, V] over the tied token table.

        Args:
          tokens: int64 [B, T].
          position_ids: int64 [B, 2, T], the index in the corrupted text and the one in the span.
          mask: bool [B, T, T], True where the query (row) sees the key (column).
        """
        hidden = self.transformer(self.word_embeddings(tokens), position_ids, mask)
        return F.linear(hidden, self.word_embeddings.weight)


class Transformer(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        rows = shape.max_positions + 1
        self.position_embeddings = nn.Embedding(rows, shape.hidden_size)
        self.block_position_embeddings = nn.Embedding(rows, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_layers))
        self.final_layernorm = nn.LayerNorm(shape.hidden_size, eps=shape.norm_eps)

    def forward(self, x, position_ids, mask):
        x = x + self.position_embeddings(position_ids[:, 0])
        x = x + self.block_position_embeddings(position_ids[:, 1])
        for layer in self.layers:
            x = layer(x, mask)
        return self.final_layernorm(x)


class Layer(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.input_layernorm = nn.LayerNorm(shape.hidden_size, eps=shape.norm_eps)
        self.attention = Attention(shape)
        self.post_attention_layernorm = nn.LayerNorm(shape.hidden_size, eps=shape.norm_eps)
        self.mlp = MLP(shape)

    def forward(self, x, mask):
        x = x + self.attention(self.input_layernorm(x), mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Attention(nn.Module):
    """The fused projection is [Q; K; V], three equal blocks, each of all heads."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.num_heads = shape.num_heads
        self.query_key_value = nn.Linear(shape.hidden_size, 3 * shape.hidden_size)
        self.dense = nn.Linear(shape.hidden_size, shape.hidden_size)

    def forward(self, x, mask):
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in self.query_key_value(x).chunk(3, dim=-1)
        )
        scores = query @ (key.transpose(-1, -2) / math.sqrt(query.shape[-1]))
        scores = scores.masked_fill(~mask[:, None], MASKED_SCORE)
        context = scores.softmax(dim=-1) @ value
        return self.dense(context.transpose(1, 2).flatten(-2))


class MLP(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.dense_h_to_4h = nn.Linear(shape.hidden_size, shape.mlp_size)
        self.dense_4h_to_h = nn.Linear(shape.mlp_size, shape.hidden_size)
        self.gelu = shape.gelu

    def forward(self, x):
        return self.dense_4h_to_h(F.gelu(self.dense_h_to_4h(x), approximate=self.gelu))


def attention_mask(in_context: torch.Tensor, segment: torch.Tensor) -> torch.Tensor:
    """Who sees whom: bool [B, T, T].

    A slot sees the whole context (Part A) of its own sample and, of its Part B, what is not later
    than itself.

    Args:
      in_context: bool [B, T], True for Part A.
      segment: int [B, T], which sample of a packed row a slot belongs to.
    """
    length = segment.shape[1]
    not_later = torch.ones(length, length, dtype=torch.bool).tril()
    return (segment[:, :, None] == segment[:, None, :]) & (not_later | in_context[:, None, :])


def token_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each slot [B, T], in float32 or wider; targets are not shifted."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(wide.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)


def batch_loss(losses: torch.Tensor, loss_mask: torch.Tensor) -> torch.Tensor:
    """The published loss of a batch: the masked sum over the number of targets, if there is one."""
    total, count = (losses * loss_mask).sum(), loss_mask.sum()
    return total / count if count > 0 else total


def gradient_norm(model: nn.Module) -> torch.Tensor:
    """Norm of all gradients together, float64 [].

    torch's own float32 norm is short by 1e-5 to 1e-4 on a table of a million entries (CPU).
    """
    return sum(p.grad.double().square().sum() for p in model.parameters()).sqrt()


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Weight decay for all but LayerNorms and biases; embedding tables do decay (THUDM/GLM)."""
    decays, rest = [], []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            exempt = name == "bias" or isinstance(module, nn.LayerNorm)
            (rest if exempt else decays).append(parameter)
    return [
        {"params": decays, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]


def learning_rate(n: int, recipe: Recipe) -> float:
    """Learning rate of update n, counted from 1: Megatron's cosine, as THUDM/GLM has it.

    THUDM/GLM steps its schedule after the optimizer, so that its update n has the rate of n - 1 and
    its first one moves nothing; here, as in glm_jax, the first one learns.
    """
    if n <= recipe.warmup_steps:
        return recipe.learning_rate * n / recipe.warmup_steps
    progress = (n - recipe.warmup_steps) / (recipe.decay_steps - recipe.warmup_steps)
    cosine = (math.cos(math.pi * min(1.0, progress)) + 1) / 2
    return recipe.learning_rate * (recipe.final_ratio + (1 - recipe.final_ratio) * cosine)


class Trainer:
    """One rank that trains in float32 or wider; calling it makes one update."""

    def __init__(self, shape: Shape, recipe: Recipe, weights: dict[str, np.ndarray]):
        """Takes over `weights`, by published name; their dtype is that of the training."""
        state = {name: torch.tensor(array) for name, array in weights.items()}
        self.model = GLM(shape).to(state["word_embeddings.weight"].dtype)
        self.model.load_state_dict(state)
        self.recipe = recipe
        self.updates = 0
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.model, recipe.weight_decay), betas=recipe.betas, eps=recipe.eps
        )

    def __call__(self, tokens, targets, loss_mask, position_ids, segment) -> Update:
        """Trains on a batch: numpy, [B, T] each and `position_ids` [B, 2, T]."""
        tokens, targets, position_ids = (
            torch.as_tensor(x, dtype=torch.long) for x in (tokens, targets, position_ids)
        )
        loss_mask, segment = torch.as_tensor(loss_mask), torch.as_tensor(segment)
        mask = attention_mask(position_ids[:, 1] == 0, segment)
        losses = token_losses(self.model(tokens, position_ids, mask), targets)
        loss = batch_loss(losses, loss_mask)

        self.updates += 1
        rate = learning_rate(self.updates, self.recipe)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        loss.backward()
        norm = gradient_norm(self.model)
        nn.utils.clip_grads_with_norm_(self.model.parameters(), self.recipe.clip_norm, norm)
        self.optimizer.step()
        row_losses = (losses.detach() * loss_mask).sum(1).numpy()
        return Update(loss.item(), norm.item(), rate, row_losses)
