"""Log-probabilities of Part B the obvious way: one row, all logits, one answer at a time."""

import jax
import numpy as np

from glm_jax.model import glm

_forward = jax.jit(glm.apply_logits, static_argnums=0)


def part_b(config, params, context, mask: int, answer, sop: int) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities float64 [k] and argmax flags bool [k] of an answer, int [k]."""
    context, answer = [int(i) for i in context], [int(i) for i in answer]
    n, k = len(context), len(answer)
    tokens = [*context, sop, *answer[:-1]]
    position = list(range(n)) + [mask] * k
    block = [0] * n + list(range(1, k + 1))
    kv_end = [n] * n + list(range(n + 1, n + k + 1))
    length = -(-(n + k) // 64) * 64
    rows = np.array([x + [0] * (length - n - k) for x in (tokens, position, block, kv_end)])
    tokens, position, block, kv_end = rows[:, None].astype(np.int32)
    logits = _forward(config, params, tokens, position, block, np.zeros_like(kv_end), kv_end)
    logits = np.asarray(logits, np.float64)[0, n : n + k]
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return log_probs[np.arange(k), answer], logits.argmax(-1) == answer
