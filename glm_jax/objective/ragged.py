"""Values of many rows one after the other, and the generators that draw for one row each."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

Generators = Sequence[np.random.Generator]
"""One generator for each row."""


def draw(make: Callable[..., np.ndarray], rngs: Generators, *arguments: Iterable) -> np.ndarray:
    """What `make(rng, ..)` draws for each row, one after the other.

    Args:
      arguments: an argument of each row, as in `map`.
    """
    return np.concatenate(list(map(make, rngs, *arguments)))


def integers(rngs: Generators, low: np.ndarray, high: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """A number of [low, high) for each entry of `low` and `high` [n], of which rows have `counts`.

    Returns:
      int64 [n].
    """
    return draw(np.random.Generator.integers, rngs, parts(low, counts), parts(high, counts))


def shuffled(rngs: Generators, counts: np.ndarray) -> np.ndarray:
    """The numbers of the entries of every row, of which it has `counts` [R], in random order."""
    order = draw(np.random.Generator.permutation, rngs, counts.tolist())
    return order + np.repeat(np.cumsum(counts) - counts, counts)


def parts(values: np.ndarray, counts: np.ndarray) -> list[np.ndarray]:
    """The entries of each row as views."""
    ends = np.cumsum(counts).tolist()
    return [values[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def group_sizes(group: np.ndarray, count: int) -> np.ndarray:
    """How often each of 0 .. count - 1 stands in `group`: int64 [count]."""
    return np.bincount(group, minlength=count)


def ranks(group: np.ndarray) -> np.ndarray:
    """Number of each entry among those of its group; `group` is sorted."""
    return np.arange(len(group)) - _first(group)[group]


def sums_before(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Sum of the earlier int64 `values` of the same group; `group` is sorted."""
    before = np.cumsum(values)
    before -= values
    return before - np.append(before, 0)[_first(group)][group]


def _first(group: np.ndarray) -> np.ndarray:
    """First entry of each of 0 .. max(group), or where it would be."""
    sizes = np.bincount(group)
    return np.cumsum(sizes) - sizes


def sorted_within(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Sorts `values` [n], 0 <= value < 2^32, within each group; `group` is sorted."""
    keys = (group << 32) | values
    keys.sort()
    return keys & 0xFFFFFFFF


def runs(start: np.ndarray, size: np.ndarray) -> np.ndarray:
    """`start[0], start[0] + 1 ..` of `size[0]` numbers, then those of the next: int64."""
    total = np.cumsum(size)
    numbers = np.repeat(start - (total - size), size)
    numbers += np.arange(len(numbers))
    return numbers


def stable_order(group: np.ndarray) -> np.ndarray:
    """Sorts by `group` [n] and leaves the order within a group: int64 [n]."""
    # NumPy sorts short integers by radix, five times as fast.
    is_short = not len(group) or group.max() < 1 << 16
    return np.argsort(group.astype(np.uint16) if is_short else group, kind="stable")
