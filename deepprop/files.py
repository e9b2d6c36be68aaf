"""Files: archives read without pickle, and writing that never leaves half a file."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np

NO_ARCHIVE = "not a NumPy .npz archive that can be read"


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
    if not Path(path).is_file():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except PermissionError:
        raise
    except Exception as error:  # a damaged archive raises whatever its decoder does
        why = ", as it holds Python objects" if "pickle" in str(error) else ""
        raise ValueError(f"{path}: {NO_ARCHIVE}{why}: {error}") from None
    for name, value in arrays.items():
        if not isinstance(value, np.ndarray):
            raise ValueError(f"{path}: {NO_ARCHIVE}: {name} is no array")
    return arrays


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
    target = Path(path).resolve()  # a link stays a link
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with part.open("xb") as file:
            if target.exists():
                part.chmod(target.stat().st_mode)
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise unless a file could be written there, before the work that it is to hold.

    Args:
        path: the file; one that is there is left as it is.

    Raises:
        OSError: it can't be written.
    """
    with suppress(_TrialError), atomic_write(path):
        raise _TrialError


class _TrialError(Exception):
    """Ends a trial of writing before it replaces anything."""
