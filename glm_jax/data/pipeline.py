"""From rows to the batches of one host, with Grain. The state of the data is the next row's index.

Global batch b holds rows start_row + b * global_batch_size on, in order; host h of n has the h-th
of n equal contiguous parts. So the rows do not depend on the number of hosts or workers, and a run
resumes with `start_row = step * batch_size`.
"""

import signal
import sys
from collections.abc import Generator

import grain
import numpy as np
from absl import flags

from glm_jax.batch import Batch
from glm_jax.data.rows import Rows


class _HostBatches(grain.MapDataset[Batch]):
    """Global batch number -> this host's rows of it."""

    def __init__(self, rows: Rows, start_row: int, global_size: int, host_slice: range):
        super().__init__()
        self._rows = rows
        self._start_row = start_row
        self._global_size = global_size
        self._host_slice = host_slice

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, number):
        if isinstance(number, slice):
            return self.slice(number)
        first = self._start_row + number * self._global_size
        rows = [self._rows[first + place] for place in self._host_slice]
        return Batch(*map(np.stack, zip(*rows, strict=True)))


def batches(
    rows: Rows,
    *,
    start_row: int,
    global_batch_size: int,
    process_index: int,
    process_count: int,
    num_workers: int,
    prefetch: int,
) -> Generator[Batch, None, None]:
    """Endless batches of this host from row `start_row` on: numpy, fields [B / hosts, T].

    Close the generator when done with it: that ends its threads and processes.

    Args:
      global_batch_size: B, rows of a batch over all hosts.
      process_index: this host, 0 <= process_index < process_count.
      num_workers: processes that build rows; 0 builds them in a thread of this one.
      prefetch: batches built ahead by each worker, at least 1.

    Raises:
      ValueError: `global_batch_size` is not divisible by `process_count`.
    """
    if global_batch_size % process_count:
        raise ValueError(
            f"a batch of {global_batch_size} rows is not divisible by {process_count} hosts"
        )
    size = global_batch_size // process_count
    host_slice = range(process_index * size, (process_index + 1) * size)
    dataset = _HostBatches(rows, start_row, global_batch_size, host_slice)
    # Grain's own default is 500 elements ahead in 16 threads; here an element is a whole batch.
    dataset = dataset.to_iter_dataset(grain.ReadOptions(1, prefetch_buffer_size=prefetch))
    if num_workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's workers read flags; a test or notebook has none
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers, prefetch), worker_init_fn=_ignore_interrupts
        )
    return _closing(iter(dataset))


def _ignore_interrupts(worker: int, count: int) -> None:
    """Ctrl-C reaches the whole group; the trainer decides when its workers end."""
    del worker, count
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _closing(iterator: grain.DatasetIterator[Batch]) -> Generator[Batch, None, None]:
    # An abandoned Grain iterator leaves its processes behind, and an array of a worker is a view of
    # shared memory that must not outlive it.
    try:
        for batch in iterator:
            yield Batch(*map(np.array, batch))
    finally:
        iterator.close()
