"""Whether devices that hold copies of the same arrays hold the same.

They do as long as every device and host computes what the others compute. A chip that flips a bit,
or a host with another program, goes on without an error: the run is then two runs.
"""

import collections
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from glm_jax.errors import RestartError
from glm_jax.parallel.hosts import Hosts
from glm_jax.parallel.sharding import Sharding


class Replicas:
    """Compares the copies of the arrays of a tree."""

    def __init__(self, sharding: Sharding, tree, shardings):
        """Compiles nothing yet.

        Args:
          tree: of shapes and dtypes.
          shardings: of its leaves, on the mesh of `sharding`.
        """
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        self._mesh = sharding.mesh
        self._names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
        self._shapes = [leaf.shape for _, leaf in leaves]
        self._layouts: list[NamedSharding] = jax.tree.leaves(shardings)
        specs = tuple(layout.spec for layout in self._layouts)
        digest = jax.shard_map(
            lambda leaves: jnp.stack([_digest(x) for x in leaves])[None],
            mesh=self._mesh,
            in_specs=(specs,),
            out_specs=P(self._mesh.axis_names),
        )
        self._digests = jax.jit(digest, out_shardings=sharding.replicated)

    def check(self, tree, hosts: Hosts) -> None:
        """Compares them; all processes call it together.

        Raises:
          RestartError: two devices differ, naming the arrays, devices and processes.
        """
        digests = np.asarray(self._digests(tuple(jax.tree.leaves(tree))))
        if found := list(self._differing(digests, hosts)):
            more = f" and of {len(found) - 1} other arrays" if len(found) > 1 else ""
            raise RestartError(f"copies of {found[0]}{more} are not the same")

    def _differing(self, digests: np.ndarray, hosts: Hosts) -> Iterator[str]:
        """The arrays of which two copies differ, and where the rarer one is."""
        devices = list(self._mesh.devices.flat)
        for number, (name, shape) in enumerate(zip(self._names, self._shapes, strict=True)):
            parts = self._layouts[number].devices_indices_map(shape)
            copies = collections.defaultdict(list)
            for device, digest in zip(devices, digests[:, number].tolist(), strict=True):
                copies[str(parts[device])].append((digest, device))
            for held in copies.values():
                counts = collections.Counter(digest for digest, _ in held)
                if len(counts) > 1:
                    usual = counts.most_common(1)[0][0]
                    odd = next(device for digest, device in held if digest != usual)
                    who = hosts.describe(odd.process_index)
                    yield f"{name} (device {odd.id} of {who} against {counts[usual]} others)"
                    break


def _digest(x: jax.Array) -> jax.Array:
    """Of all bits of an array, uint32; every single flipped bit changes it.

    Each word is multiplied by an odd number that hangs on its place, which is a bijection, and
    sums wrap: one changed word always shows.
    """
    bits = 8 * x.dtype.itemsize
    words = x if bits < 8 else jax.lax.bitcast_convert_type(x, f"uint{min(bits, 32)}")
    words = words.astype(jnp.uint32).reshape(-1)
    place = jax.lax.iota(jnp.uint32, words.size)
    return jnp.sum(words * (place * np.uint32(2654435761) | np.uint32(1)), dtype=jnp.uint32)
