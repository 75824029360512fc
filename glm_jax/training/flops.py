"""How many floating-point operations a training step takes, by three formulas.

A product of [m, k] and [k, n] is 2mkn operations. A weight is in one product forward and in two
backward, so 6 a slot; a query meets a key in two products of d forward (scores, values) and in four
backward, so 12 d a head. Norms, activations, the softmax, embeddings and the optimizer count for
nothing. Frozen parameters count like the others, though their own gradients are not computed.
"""

import dataclasses
import math
from typing import NamedTuple

import jax

from glm_jax.config import ModelConfig
from glm_jax.model import glm
from glm_jax.model.remat import computed_again


class Counts(NamedTuple):
    """What a batch asks for; sums over its rows."""

    slots: float
    tokens: float  # slots that are not padding
    targets: float  # slots with a weight
    pairs: float  # of a query and a key it sees
    row_length: float


@dataclasses.dataclass(frozen=True)
class Flops:
    """Operations by each formula.

    Attributes:
      useful: what the loss of this batch needs, and nothing for padding, for keys that nobody sees
        or for slots without a loss: 6 N tokens + 6 V D targets + 12 L H d pairs.
      palm: (6 (N + V D) + 12 L H d T) slots (PaLM, arXiv 2204.02311, appendix B), as others count:
        every slot is a target and sees its whole row.
      hardware: what the matrix units are given: N for padding too, and 9 products a pair, as the
        two backward kernels each recompute the scores and their gradient (`glm_jax.ops`):
        6 N slots + 6 V D targets + 18 L H d pairs, and what `remat` computes again: 2 for a slot
        and each of those of N, and 4 L H d pairs if the attention is among it. A floor: tiles of
        scores that are seen in part count in part.
    """

    useful: float
    palm: float
    hardware: float

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(
            self.useful + other.useful, self.palm + other.palm, self.hardware + other.hardware
        )


NO_FLOPS = Flops(0.0, 0.0, 0.0)


@dataclasses.dataclass(frozen=True)
class Costs:
    """What one model costs.

    Attributes:
      layer_weights: N, elements of the kernels of all layers.
      head_weights: V D.
      attention_width: L H d.
      weights_again: those of N whose products the backward pass computes again.
      attends_again: so it does the attention over keys.
    """

    layer_weights: int
    head_weights: int
    attention_width: int
    weights_again: int
    attends_again: bool

    def of_step(self, counts: Counts) -> Flops:
        """The operations of a training step on a batch."""
        weights, width = self.layer_weights, self.attention_width
        loss = 6 * self.head_weights * counts.targets
        per_slot = 6 * (weights + self.head_weights) + 12 * width * counts.row_length
        again = 2 * self.weights_again * counts.slots
        again += 4 * width * counts.pairs * self.attends_again
        return Flops(
            useful=6 * weights * counts.tokens + loss + 12 * width * counts.pairs,
            palm=per_slot * counts.slots,
            hardware=6 * weights * counts.slots + loss + 18 * width * counts.pairs + again,
        )


def model_costs(config: ModelConfig) -> Costs:
    """What a model costs, by its parameters; it needs `vocab_size`."""
    leaves = jax.tree_util.tree_leaves_with_path(glm.abstract_params(config)[0])
    kernels = {
        path[-2].key: math.prod(leaf.shape)
        for path, leaf in leaves
        if path[0].key == "layers" and path[-1].key == "kernel"
    }
    again = computed_again(config)
    return Costs(
        layer_weights=sum(kernels.values()),
        head_weights=config.vocab_size * config.hidden_dim,
        attention_width=config.num_layers * config.num_heads * config.head_dim,
        weights_again=sum(size for name, size in kernels.items() if name in again),
        attends_again="attention" in again,
    )
