"""What devices send to each other in a compiled program, and how much of it has to be."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from glm_jax.planning.hlo import Computation, Instruction, Program, parse, shape_bytes, trip_count

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
    "send",
)
"""XLA's names; asynchronous collectives end in `-start` and `-done`.

`send` is what a device hands to the network between slices of TPUs, for a sum over slices.
"""

_SCATTER_KERNEL = "all-reduce-scatter"
"""How the TPU compiler writes a scatter that it runs as one kernel: an all-reduce with a slice."""

_CALLERS = ("while", "conditional", "call", "fusion", "async-start")


class Collective(NamedTuple):
    """One collective of the program text."""

    kind: str  # one of KINDS
    shape: str  # of its result, as in the text
    group_size: int  # devices that take part together; of a permute, those that send
    bytes: int  # that a device sends each time
    loops: tuple[int | None, ...]  # runs of the loops around it, the outermost first; None: unknown

    @property
    def times(self) -> int:
        """How often it runs in a step; loops of unknown length count once."""
        return math.prod(1 if runs is None else runs for runs in self.loops)

    @property
    def total_bytes(self) -> int:
        return self.bytes * self.times


def census(text: str) -> list[Collective]:
    """Every collective of a compiled program (`jax.stages.Compiled.as_text()`), each once.

    Those of a single device send nothing and are left out.

    A pair of start and done is one collective. So are the parts into which the TPU compiler cuts an
    asynchronous one to hide it behind several fusions. The gathers and scatters that it turns into
    rings of permutes around the pieces of a matrix product (windowed einsum) are the permutes that
    they became.
    """
    program = parse(text)
    return list(_walk(program, program.entry, ()))


def _walk(program: Program, name: str, loops: tuple) -> Iterator[Collective]:
    computation = program.computations[name]
    for instruction in computation.values():
        kind = instruction.op.removesuffix("-start")
        if kind == "all-reduce" and name.startswith(_SCATTER_KERNEL):
            kind = "reduce-scatter"
        if kind in KINDS:
            collective = _collective(kind, computation, instruction, loops)
            if collective.bytes and not _is_continued(computation, instruction):
                yield collective
        elif instruction.op == "while":
            runs = trip_count(program, computation, instruction)
            yield from _walk(program, instruction.attribute("body"), (*loops, runs))
        elif instruction.op in _CALLERS:
            for called in instruction.called:
                yield from _walk(program, called, loops)


def _is_continued(computation: Computation, instruction: Instruction) -> bool:
    """Whether this is a later part of a collective that another fusion has started."""
    if "chain_id=" not in instruction.text:
        return False
    return not any(
        instruction.name in user.operands and '"AsyncCollectiveStart"' in user.text
        for user in computation.values()
    )


def _collective(kind, computation: Computation, instruction: Instruction, loops) -> Collective:
    operands = [shape_bytes(computation[name].shape) for name in instruction.operands]
    group = _group_size(instruction.text)
    return Collective(kind, instruction.shape, group, _sent(kind, sum(operands), group), loops)


def _sent(kind: str, operand: int, group: int) -> int:
    """Bytes that leave a device on a ring, the least for large arrays (Chan et al. 2007).

    That paper: "Collective communication: theory, practice, and experience", section 4.
    """
    if kind in ("collective-permute", "collective-broadcast", "send"):
        return operand
    if kind == "all-gather":
        return operand * (group - 1)
    return (2 if kind == "all-reduce" else 1) * operand * (group - 1) // group


def _group_size(text: str) -> int:
    """Devices in a group, in each of the ways in which XLA writes them."""
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", text):
        return len(found[1].split(","))
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", text):
        return int(found[1])
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\].*?\{([^}]*)\}", text):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", found[2])  # 'a':(2)4 is a part of a
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    if found := re.search(r"source_target_pairs=\{(\{.*?\})\}", text):
        return found[1].count("{")
    if found := re.search(r'_xla_megascale_target="\{([\d,]*)\}', text):
        return len(found[1].split(","))
    raise ValueError(f"a collective without groups that are known here: {text}")


class LayerTraffic(NamedTuple):
    """Bytes that a device sends for one layer of one step, forward and backward."""

    by_kind: dict[str, int]
    minimum: int  # see `fsdp_minimum`

    @property
    def total(self) -> int:
        return sum(self.by_kind.values())


def layer_traffic(collectives: list[Collective], num_layers: int, minimum: int) -> LayerTraffic:
    """The traffic inside the loops over layers.

    Those run `num_layers` times, or once less where the compiler took one run out to overlap it.
    """
    by_kind = Counter()
    for collective in collectives:
        runs = [runs for runs in collective.loops if runs in (num_layers, num_layers - 1)]
        if runs:
            by_kind[collective.kind] += collective.total_bytes // runs[0]
    return LayerTraffic(dict(by_kind), minimum)


def fsdp_minimum(
    num_weights: int, parts: int, copies: int = 1, *, compute_bytes: int, gradient_bytes: int = 4
) -> int:
    """Bytes that a device sends for one layer whose weights lie in `parts` parts, `copies` times.

    The weights are gathered for the forward pass and, as nobody keeps them, for the backward pass;
    their gradient is scattered (ZeRO stage 3, Rajbhandari et al. 2020, arXiv 1910.02054, section
    7.2.2), and its parts are summed over the copies.

    Args:
      num_weights: of the layer.
      compute_bytes: of one in the dtype of the matrix products.
      gradient_bytes: of one of its gradient as it is summed, see `glm_jax.ops.linear`.
    """
    sent = num_weights * (2 * compute_bytes + gradient_bytes) * (parts - 1) // parts
    return sent + 2 * num_weights * gradient_bytes * (copies - 1) // (parts * copies)
