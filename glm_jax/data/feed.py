"""Training batches with a place: which rows come next, and how long they were waited for."""

import dataclasses
import time

from glm_jax.batch import Batch, HostShare
from glm_jax.config import Config
from glm_jax.data.dataset import host_batches
from glm_jax.data.rows import Rows
from glm_jax.stages import BatchGrid


class Feed:
    """This host's batches from a row on; `next_row` is the whole state of the data."""

    def __init__(self, rows: Rows, config: Config, share: HostShare):
        """Begins nothing before the first `seek`."""
        self._rows, self._config, self._share = rows, config, share
        self._grid = BatchGrid(config)
        self._batches, self.next_row = None, 0

    def seek(self, row: int) -> None:
        """Makes `row` the first row of the next batch.

        Raises:
          UserError: no batch begins with it, see `BatchGrid.check`.
        """
        self._grid.check(row)
        self.close()
        self.next_row = row
        plan = _BatchesFrom(self._grid, row)
        self._batches = host_batches(self._rows, plan, self._config, self._share)

    def next(self) -> tuple[Batch, range, float]:
        """A batch, the indices of its rows over all hosts, and the seconds it was waited for."""
        started = time.perf_counter()
        batch = next(self._batches)
        rows = self._grid.batch(self.next_row)
        self.next_row = rows.stop
        return batch, rows, time.perf_counter() - started

    def close(self) -> None:
        """Ends the threads and processes behind the batches."""
        if self._batches is not None:
            self._batches.close()


@dataclasses.dataclass(frozen=True)
class _BatchesFrom:
    """The batches of a grid from a row on, by number."""

    grid: BatchGrid
    row: int

    def __call__(self, number: int) -> range:
        return self.grid.batch(self.grid.later(self.row, number))
