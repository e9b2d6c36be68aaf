"""Files: archives read without pickle, and writing that never leaves half a file."""

import os
import secrets
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of a .npz file, read without pickle.

    Args:
        path: the file.

    Returns:
        The arrays by name.

    Raises:
        ValueError: the file is no NumPy archive, is damaged, or holds Python objects.
        OSError: the file can't be read.
    """
    try:
        with zipfile.ZipFile(path):
            pass
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        why = " and holds Python objects, which are not read" if "pickle" in str(error) else ""
        raise ValueError(
            f"{path}: not a NumPy .npz archive that can be read{why}: {error}"
        ) from None


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file to write to that takes the place of `path` when all is written, and never half of it.

    Args:
        path: the file.

    Yields:
        A binary file beside `path`, removed again if writing fails.

    Raises:
        OSError: it can't be written.
    """
    target = Path(path)
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
