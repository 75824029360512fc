"""From rows to the batches of one host, with Grain. The state of the data is the next row's index.

A batch holds consecutive rows in equal contiguous parts, of which a host reads those that its
devices hold. So the rows do not depend on the number of hosts or workers, and a run resumes at the
row after its last batch.
"""

import itertools
import signal
import sys
from collections.abc import Callable, Generator

import grain
import numpy as np
from absl import flags

from glm_jax.batch import Batch, HostShare
from glm_jax.data.rows import Rows

BatchPlan = Callable[[int], range]

_GRACE_SECONDS = 60  # of a worker that was told to end


class _HostBatches(grain.MapDataset[Batch]):
    """Number of a batch from the first on -> this host's rows of it."""

    def __init__(self, rows: Rows, plan: BatchPlan, share: HostShare):
        super().__init__()
        self._rows, self._plan, self._share = rows, plan, share

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, number):
        if isinstance(number, slice):
            return self.slice(number)
        batch = self._plan(number)
        size, rest = divmod(len(batch), self._share.count)
        if rest:
            raise ValueError(
                f"a batch of {len(batch)} rows is not divisible by {self._share.count} devices"
            )
        parts = [batch[part * size : (part + 1) * size] for part in self._share.parts]
        return self._rows.build(list(itertools.chain.from_iterable(parts)))


def batches(
    rows: Rows,
    plan: BatchPlan,
    share: HostShare,
    *,
    num_workers: int,
    prefetch: int,
) -> Generator[Batch, None, None]:
    """Endless batches of this host: numpy, fields [B', T], the parts of the share in their order.

    Close the generator when done with it: that ends its threads and processes.

    Args:
      plan: picklable; from the number of a batch, from 0, to its rows over all hosts, of which
        there must be a multiple of `share.count` (ValueError, at the first batch without).
      share: of this host.
      num_workers: processes that build rows; 0 builds them in a thread of this one.
      prefetch: batches built ahead by each worker, at least 1.
    """
    dataset = _HostBatches(rows, plan, share)
    # Grain's own default is 500 elements ahead in 16 threads; here an element is a whole batch.
    dataset = dataset.to_iter_dataset(grain.ReadOptions(1, prefetch_buffer_size=prefetch))
    if num_workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's workers read flags; a test or notebook has none
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers, prefetch), worker_init_fn=_outlive_signals
        )
    return _closing(iter(dataset), copy=num_workers > 0)


def _outlive_signals(worker: int, count: int) -> None:
    """Terminals and schedulers signal all processes; the trainer decides when its workers end.

    It may have steps to do that other hosts do too. What ends a program without closing its batches
    sends SIGTERM as well, and waits: so a worker does end, a while later.
    """
    del worker, count
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE_SECONDS))


def _closing(iterator: grain.DatasetIterator[Batch], copy: bool) -> Generator[Batch, None, None]:
    # An abandoned Grain iterator leaves its processes behind, and an array of a worker is a view of
    # shared memory that must not outlive it.
    try:
        for batch in iterator:
            yield Batch(*map(np.array, batch)) if copy else batch
    finally:
        iterator.close()
