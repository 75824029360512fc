"""The checksums of a folder of weights, in the format of `sha256sum -c`."""

import hashlib
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from glm_jax.errors import UserError

CHECKSUMS = "sha256sums.txt"

_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
_THREADS = 4  # one core hashes less than the disks of a training host read


def write_checksums(folder: Path, names: Iterable[str]) -> None:
    """Writes sha256sums.txt with the digests of the named files of a folder.

    Raises:
      OSError: something cannot be read or written.
    """
    lines = [f"{digest}  {name}\n" for name, digest in _digests(folder, names).items()]
    (folder / CHECKSUMS).write_text("".join(lines))


def verify_checksums(folder: str | Path) -> bool:
    """Compares the files of a folder with its sha256sums.txt.

    Returns:
      False when the folder has no such file.

    Raises:
      UserError: a file is missing or is not what was written, or the list is damaged.
    """
    folder = Path(folder)
    if not (folder / CHECKSUMS).is_file():
        return False
    listed = _read_checksums(folder / CHECKSUMS)
    for name in listed:
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing: {CHECKSUMS} lists it")
    found = _digests(folder, listed)
    for name, digest in listed.items():
        if found[name] != digest:
            raise UserError(f"{folder / name} is not what was written: SHA-256 {found[name]}")
    return True


def _read_checksums(path: Path) -> dict[str, str]:
    """File -> digest."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    listed = {}
    for line in lines:
        match = _LINE.fullmatch(line)
        if match is None or Path(match[2]).name != match[2]:
            raise UserError(f"{path}: {line!r} is not a checksum of a file beside it")
        listed[match[2]] = match[1]
    if not listed:
        raise UserError(f"{path} lists no file")
    return listed


def _digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    names = list(names)
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(names, pool.map(lambda name: _sha256(folder / name), names), strict=True))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
