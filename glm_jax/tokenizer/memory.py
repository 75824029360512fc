"""The memory that this process may still take: of the machine, or of its container."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


def available_memory(cgroups: Path = _CGROUPS, own: Path = _OWN_CGROUPS) -> int:
    """Bytes that are free on the machine, or below the limit of a control group if that is less.

    Args:
      cgroups: where the control groups of Linux are mounted.
      own: the file that names those of this process.
    """
    return min([psutil.virtual_memory().available, *_rooms(cgroups, own)])


class _Files(NamedTuple):
    """What a version of the control groups calls its limit, its use and the cache in that."""

    limit: str
    used: str
    cache: str


_FIRST = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_SECOND = _Files("memory.max", "memory.current", "inactive_file")


def _rooms(cgroups: Path, own: Path) -> Iterator[int]:
    """What is left of every limit that holds for this process: of its groups and those above."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, files = (cgroups / "memory", _FIRST) if controllers else (cgroups, _SECOND)
        # In a container the name is often that of the host; the mount itself is then the group.
        group = root / name.lstrip("/")
        for folder in [group, *(parent for parent in group.parents if parent.is_relative_to(root))]:
            room = _room(folder, files)
            if room is not None:
                yield room


def _room(folder: Path, files: _Files) -> int | None:
    """What is left of the limit of a group; None if there is no such group or limit.

    Files that were read and may be forgotten count as used and are not.
    """
    try:
        limit = int((folder / files.limit).read_text())
        used = int((folder / files.used).read_text())
        lines = (folder / "memory.stat").read_text().splitlines()
        cache = int(dict(line.split() for line in lines).get(files.cache, 0))
    except (OSError, ValueError):  # "max" is no limit
        return None
    return max(0, limit - used + cache)
