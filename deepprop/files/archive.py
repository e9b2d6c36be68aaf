"""NumPy archives read without pickle, and files written completely or not at all.

A pickle can run code when it is loaded, so nothing is ever unpickled. People pass many other kinds
of files by mistake, and the error says which kind it is.
"""

import errno
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np

NO_ARCHIVE = "not a NumPy .npz archive that can be read"
SIGNATURES = {  # the first bytes of files that people pass instead
    b"\x93NUMPY": "a .npy file, which holds a single array",
    b"\x89HDF\r\n": "an HDF5 file",
    b"PAR1": "a Parquet file",
    b"\x1f\x8b": "compressed with gzip",
    b"%PDF": "a PDF",
    b"\x89PNG": "a picture",
    **{b"\x80" + bytes([protocol]): "a pickle, which could run code" for protocol in range(2, 6)},
}
NOT_FILES = {  # paths that lead to something else
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe, which can't be read twice",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def npz_names(path: str | os.PathLike[str], hint: str = "") -> list[str]:
    """List the names of the arrays in a .npz file, without reading them.

    Args:
        path: the file.
        hint: the end of an error message, such as how to write such a file.

    Returns:
        The names, in the order of the file.

    Raises:
        ValueError: the file is not a NumPy archive (the message says what it is instead), or a name
            occurs twice.
        OSError: the file can't be read.
    """
    with _archive(path, hint) as archive:
        names = list(archive.files)
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"{path}: holds {min(twice)} twice")
    return names


def read_npz(
    path: str | os.PathLike[str], names: Iterable[str] | None = None, hint: str = ""
) -> dict[str, np.ndarray]:
    """Read arrays of a .npz file, without pickle.

    Args:
        path: the file.
        names: the arrays to read; the others may hold anything. None reads all of them.
        hint: as for `npz_names`.

    Returns:
        The arrays by name.

    Raises:
        ValueError: the file is not a NumPy archive or is damaged, or an array holds Python objects.
        OSError: the file can't be read.
    """
    names = npz_names(path, hint) if names is None else names
    with _archive(path, hint) as archive:
        return {name: _read_member(path, archive, name) for name in names}


def as_text(name: str, array: np.ndarray) -> np.ndarray:
    """Return an array of bytes decoded to text; any other array unchanged.

    Raises:
        ValueError: the bytes are not UTF-8.
    """
    if array.dtype.kind != "S":
        return array
    try:
        return np.char.decode(array, "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} must be text or bytes in UTF-8, got bytes that are not: {error.object!r};"
            f" np.char.decode({name}, 'latin-1') reads those of another encoding"
        ) from None


@contextmanager
def _archive(path: str | os.PathLike[str], hint: str) -> Iterator[np.lib.npyio.NpzFile]:
    """Open an archive without reading a pickle."""
    hint = f"; {hint}" if hint else ""
    if what := _other_kind(path):
        raise ValueError(f"{path}: {NO_ARCHIVE}, but {what}{hint}")
    with open(path, "rb") as file:
        try:
            archive = np.load(file, allow_pickle=False)
        except Exception as error:  # damage can raise anything, depending on the decoder
            raise ValueError(f"{path}: {NO_ARCHIVE}: {error}{hint}") from None
        with archive:
            yield archive


def _other_kind(path: str | os.PathLike[str]) -> str:
    """Return what the file is if it can't be an archive; otherwise "".

    Raises:
        OSError: there is no such file, or it can't be read.
    """
    kind = stat.S_IFMT(os.stat(os.fspath(path)).st_mode)
    if kind in NOT_FILES:  # opening a pipe would wait for a writer
        return NOT_FILES[kind]
    with open(path, "rb") as file:
        start = file.read(512)
    if not start:
        return "empty"
    if start[:2] == b"PK":
        return ""
    for beginning, what in SIGNATURES.items():
        if start.startswith(beginning):
            return what
    return "text, such as a CSV" if _is_text(start) else "of an unknown format"


def _is_text(start: bytes) -> bool:
    """Return whether the first bytes of a file are UTF-8 text without control characters."""
    try:
        text = start.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3:  # only the last character may be cut off
            return False
        text = start[: error.start].decode("utf-8")
    return all(character.isprintable() or character in "\t\r\n\ufeff" for character in text)


def _read_member(
    path: str | os.PathLike[str], archive: np.lib.npyio.NpzFile, name: str
) -> np.ndarray:
    """Read one array of an archive.

    Raises:
        ValueError: it holds Python objects, is damaged, or is not an array.
    """
    try:
        value = archive[name]
    except Exception as error:  # damage can raise anything, depending on the decoder
        if "allow_pickle" in str(error):
            raise ValueError(
                f"{path}: {name} holds Python objects, which are not read, as they could run code;"
                f" save {name}.astype(str) if it is text, {name}.astype(float) if it is numbers"
            ) from None
        raise ValueError(f"{path}: {NO_ARCHIVE}: {name}: {error}") from None
    if not isinstance(value, np.ndarray):
        raise ValueError(f"{path}: {NO_ARCHIVE}: {name} is not an array")
    return value


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Yield a file that replaces `path` once it is completely written.

    A crash, a full disk or an exception must neither leave half a file nor destroy an old one.
    Everything therefore goes to a hidden file in the same folder, which is renamed to `path` at the
    end: within a file system, a rename either happens or does not. The data is forced to disk
    before it, because otherwise a power failure could leave the new name with no content. Only a
    regular file is replaced: a rename would turn a pipe or a device into a file.

    Args:
        path: the file.

    Yields:
        A binary file beside `path`, removed again if writing fails.

    Raises:
        OSError: it can't be written.
    """
    target = Path(path).resolve()  # so that the target of a link is replaced, not the link
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if target.exists() and not target.is_file():
            raise OSError(errno.EINVAL, "Not a regular file")
        with part.open("xb") as file:
            if target.exists():
                part.chmod(target.stat().st_mode)
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except OSError as error:
        if error.errno is None:
            raise
        # A new error, with the user's path: this one may name the hidden file, or both.
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise unless a file can be written there; call it before work whose result goes there.

    Args:
        path: the file; an existing one is not changed.

    Raises:
        OSError: it can't be written.
    """
    with suppress(_TrialError), atomic_write(path):
        raise _TrialError


class _TrialError(Exception):
    """Ends the trial of `check_writable` before it replaces a file."""
