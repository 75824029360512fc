"""The peer of `step.py`: the same model and training step in PyTorch, as fast as it goes there.

What a good trainer of one GPU does (torchtitan, modded-nanogpt, Liger Kernel):

- `torch.compile` of the whole model, or of each layer, as one graph without breaks;
  `max-autotune-no-cudagraphs` is an option;
- compiled flex_attention over the same key ranges, its BlockMask built once a step, compiled;
- float32 parameters that each product casts to bfloat16 (compiled into one pass), the residual
  stream in bfloat16, norms in float32, fused AdamW in float32;
- the loss at targets only, in chunks of logits with the gradients formed in the forward pass, as in
  Liger Kernel (arXiv 2410.10989); logits are bfloat16 there, float32 in between;
- a fixed number of target slots, known on the host: nothing waits for the device within a step.

Without CUDA nothing is compiled and attention is the built-in one under a dense mask, as
flex_attention has no backward pass on a CPU.
"""

import itertools

import numpy as np
import torch
from glm_2021_torch import parameter_groups
from step_case import Case, serve
from torch import nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.utils.checkpoint import checkpoint

from glm_jax.batch import Batch
from glm_jax.config import Config, ModelConfig

CHUNK = 4096  # targets whose logits exist at once
TARGET_STEP = 256  # the number of target slots is a multiple of this


class Linear(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class Norm(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.float()).to(x.dtype)


class Layer(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        width, self.num_heads = config.hidden_dim, config.num_heads
        self.attention_norm = Norm(width, eps=config.norm_eps)
        self.query_key_value = Linear(width, 3 * width)
        self.out = Linear(width, width)
        self.mlp_norm = Norm(width, eps=config.norm_eps)
        self.up = Linear(width, config.mlp_dim)
        self.down = Linear(config.mlp_dim, width)

    def forward(self, x, visible):
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in self.query_key_value(self.attention_norm(x)).chunk(3, dim=-1)
        )
        attended = attend(query, key, value, visible)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x)), approximate="tanh"))


class GLM(nn.Module):
    """Hidden states [N, D] of the target slots, after the final norm."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        width, rows = config.hidden_dim, config.max_positions + 1
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.position_embedding = nn.Embedding(rows, width)
        self.block_position_embedding = nn.Embedding(rows, width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.final_norm = Norm(width, eps=config.norm_eps)
        self.dtype = getattr(torch, config.dtype)
        self.recomputes = config.remat == "full"
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() > 1:
                nn.init.normal_(parameter, std=config.init_std)

    def forward(self, tokens, position, block_position, visible, target_slots):
        x = self.token_embedding(tokens).to(self.dtype)
        x = x + self.position_embedding(position).to(self.dtype)
        x = x + self.block_position_embedding(block_position).to(self.dtype)
        for layer in self.layers:
            if self.recomputes:
                x = checkpoint(layer, x, visible, use_reentrant=False)
            else:
                x = layer(x, visible)
        return self.final_norm(x.flatten(0, 1)[target_slots])


def attend(query, key, value, visible):
    """All [B, H, T, d]; `visible` is a BlockMask or a bool mask [B, 1, T, T]."""
    if isinstance(visible, BlockMask):
        return flex_attention(query, key, value, block_mask=visible)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=visible)


class TargetLoss(torch.autograd.Function):
    """Mean cross-entropy of the targets over the tied token table; no logits are kept."""

    @staticmethod
    def forward(ctx, x, table, targets, shares, chunk_losses):
        """x [N, D], table [V, D], targets [N]; `shares` [N] of the mean, 0 for filled-up slots."""
        head = table.to(x.dtype)
        loss, d_x, d_table = x.new_zeros((), dtype=torch.float32), [], torch.zeros_like(table)
        for part, target, share in zip(
            *(a.split(CHUNK) for a in (x, targets, shares)), strict=True
        ):
            losses, d_logits = chunk_losses(part @ head.T, target, share)
            loss += losses
            d_x.append(d_logits @ head)
            d_table += d_logits.T @ part
        ctx.save_for_backward(torch.cat(d_x), d_table)
        return loss

    @staticmethod
    def backward(ctx, d_loss):
        d_x, d_table = ctx.saved_tensors
        return d_loss.to(d_x.dtype) * d_x, d_loss * d_table, None, None, None


def chunk_losses(logits, targets, shares):
    """The chunk's part of the mean, and its gradient by the logits, in their dtype."""
    wide = logits.float()
    lse = wide.logsumexp(-1)
    nll = lse - wide.gather(1, targets[:, None])[:, 0]
    columns = torch.arange(logits.shape[1], device=logits.device)
    d_logits = (wide - lse[:, None]).exp() - (columns == targets[:, None]).float()
    return (nll * shares).sum(), (d_logits * shares[:, None]).to(logits.dtype)


class Visibility:
    """The mask of a batch, from its key ranges [B, T].

    The arrays that the rule reads stay where they are, so it is one function, compiled once.
    """

    def __init__(self, shape, device: str):
        start, end = torch.zeros((2, *shape), dtype=torch.int32, device=device)
        self.shape, self.device, self.start, self.end = shape, device, start, end
        self.create = torch.compile(create_block_mask, dynamic=False)

        def visible(b, h, i, j):
            return (start[b, i] <= j) & (j < end[b, i])

        self.rule = visible

    def of(self, start, end):
        if self.device == "cpu":
            key = torch.arange(self.shape[1])
            return ((start[..., None] <= key) & (key < end[..., None]))[:, None]
        self.start.copy_(start)
        self.end.copy_(end)
        rows, length = self.shape
        return self.create(self.rule, rows, None, length, length, device=self.device)


class Trainer:
    def __init__(self, config: Config, batches: list[Batch], options: list[str]):
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.manual_seed(config.seed)
        with torch.device(self._device):
            self.model = GLM(config.model)
        optimizer = config.optimizer
        self._clip_norm = optimizer.clip_norm
        self._optimizer = torch.optim.AdamW(
            parameter_groups(self.model, optimizer.weight_decay),
            lr=optimizer.learning_rate,
            betas=(optimizer.b1, optimizer.b2),
            eps=optimizer.eps,
            fused=True,
        )
        num_targets = max(int((batch.weights > 0).sum()) for batch in batches)
        num_targets = -(-num_targets // TARGET_STEP) * TARGET_STEP
        placed = [place(batch, num_targets, self._device) for batch in batches]
        self._batches = itertools.cycle(placed)
        self._visibility = Visibility(batches[0].tokens.shape, self._device)
        self._hidden, self._chunk_losses = self.model, chunk_losses
        if self._device == "cuda":
            self._compile(options)
        self._loss = None

    def _compile(self, options: list[str]) -> None:
        mode = "max-autotune-no-cudagraphs" if "max" in options else None
        self._chunk_losses = torch.compile(chunk_losses)
        if "layers" in options:
            for layer in self.model.layers:
                layer.compile(mode=mode, dynamic=False, fullgraph=True)
        else:
            self._hidden = torch.compile(self.model, mode=mode, dynamic=False, fullgraph=True)

    def step(self) -> None:
        tokens, position, block_position, start, end, slots, targets, shares = next(self._batches)
        visible = self._visibility.of(start, end)
        hidden = self._hidden(tokens, position, block_position, visible, slots)
        table = self.model.token_embedding.weight
        loss = TargetLoss.apply(hidden, table, targets, shares, self._chunk_losses)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self._clip_norm)
        self._optimizer.step()
        self._loss = loss.detach()

    def wait(self) -> float:
        if self._device == "cuda":
            torch.cuda.synchronize()
        return self._loss.item()

    def peak_bytes(self) -> int | None:
        return torch.cuda.max_memory_allocated() if self._device == "cuda" else None

    def device(self) -> str:
        return torch.cuda.get_device_name() if self._device == "cuda" else "cpu"


def place(batch: Batch, num_targets: int, device: str) -> list[torch.Tensor]:
    """The arrays of a step, with its target slots filled up to `num_targets` by the first slot."""
    (found,) = np.nonzero(batch.weights.ravel() > 0)
    slots, shares = np.zeros(num_targets, np.int64), np.zeros(num_targets, np.float32)
    slots[: len(found)] = found
    shares[: len(found)] = batch.weights.ravel()[found] / batch.weights.sum()
    targets = batch.targets.ravel()[slots].astype(np.int64)
    integers = batch.tokens, batch.position, batch.block_position, batch.kv_start, batch.kv_end
    return [torch.tensor(x, device=device) for x in (*integers, slots, targets, shares)]


def load_params(model: GLM, params: dict) -> None:
    """Takes the parameters of glm_jax, a nested dict of float32 arrays."""

    def copy(module: nn.Module, **arrays: np.ndarray) -> None:
        for name, array in arrays.items():
            parameter = getattr(module, name)
            parameter.data.copy_(torch.tensor(np.array(array)).reshape(parameter.shape))

    tables = "token_embedding", "position_embedding", "block_position_embedding"
    for name in tables:
        copy(getattr(model, name), weight=params[name]["embedding"])
    copy(model.final_norm, weight=params["final_norm"]["scale"], bias=params["final_norm"]["bias"])
    stacked = params["layers"]
    for number, layer in enumerate(model.layers):

        def linear(*parts: dict, inputs: int, at: int = number) -> dict[str, np.ndarray]:
            kernels = [np.asarray(part["kernel"][at]).reshape(inputs, -1) for part in parts]
            biases = [np.asarray(part["bias"][at]).ravel() for part in parts]
            return {"weight": np.concatenate(kernels, 1).T, "bias": np.concatenate(biases)}

        width = layer.out.in_features
        attention, mlp = stacked["attention"], stacked["mlp"]
        projections = [attention[name] for name in ("query", "key", "value")]
        copy(layer.query_key_value, **linear(*projections, inputs=width))
        copy(layer.out, **linear(attention["out"], inputs=width))
        copy(layer.up, **linear(mlp["up"], inputs=width))
        copy(layer.down, **linear(mlp["down"], inputs=layer.down.in_features))
        for name in ("attention_norm", "mlp_norm"):
            norm = stacked[name]
            copy(getattr(layer, name), weight=norm["scale"][number], bias=norm["bias"][number])


def make_trainer(case: Case) -> Trainer:
    return Trainer(case.config, case.batches(), case.options)


if __name__ == "__main__":
    serve(make_trainer)
