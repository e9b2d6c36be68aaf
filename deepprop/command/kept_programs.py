"""Compiled programs that are kept from one run of the command to the next.

Half the time of a short training is compilation. JAX can keep compiled programs in a folder (its
persistent compilation cache); here it gets one in the user's cache folder. A compiled program is
code that the next run executes. So the folder is used only if it belongs to the user, and nobody
else can read or write it. A folder that is full, read-only, damaged, or shared by
several processes costs time, but is never an error.

The library itself never does this: where programs are kept is a setting of the whole process.
"""

import os
import stat
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax

LARGEST = 2**28  # bytes; above this the oldest programs are deleted
SETTINGS = {  # of JAX: keep every program, however small it is
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}
QUIET = (0, 10, 2)  # earlier releases of JAX print an error whenever they read a program
ABOUT_PROGRAMS = "persistent compilation cache entry"  # in JAX's warnings


@contextmanager
def kept_programs(folder: Path | None) -> Iterator[None]:
    """Let JAX keep compiled programs in the folder while a command runs, if the folder is safe.

    JAX's own setting, such as JAX_COMPILATION_CACHE_DIR, comes first.

    Args:
        folder: such as `default_folder()`; None keeps no programs.
    """
    of_jax: Any = jax.config
    elsewhere = of_jax.jax_compilation_cache_dir or jax.__version_info__ < QUIET
    if folder is None or elsewhere or not _is_safe(folder):
        yield
        return
    damaged = False
    show = warnings.showwarning

    def show_others(message: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal damaged
        if ABOUT_PROGRAMS in str(message):
            damaged = damaged or "reading" in str(message)
        else:
            show(message, *args, **kwargs)

    warnings.showwarning = show_others
    for name, value in {**SETTINGS, "jax_compilation_cache_dir": str(folder)}.items():
        jax.config.update(name, value)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        warnings.showwarning = show
        _delete_oldest(folder, 0 if damaged else LARGEST)


def default_folder() -> Path | None:
    """Return deepprop's folder in the user's cache folder, by the platform's convention, or None.

    It is ~/.cache/deepprop (or in XDG_CACHE_HOME), on macOS ~/Library/Caches/deepprop, and on
    Windows deepprop in LOCALAPPDATA.
    """
    try:
        if sys.platform == "win32":
            return Path(os.environ["LOCALAPPDATA"], "deepprop", "programs")
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches" / "deepprop"
        given = Path(os.environ.get("XDG_CACHE_HOME", ""))  # relative ones don't count
        return (given if given.is_absolute() else Path.home() / ".cache") / "deepprop"
    except (KeyError, RuntimeError):  # the user has no home folder
        return None


def _is_safe(folder: Path) -> bool:
    """Create the folder if there is none; return whether it is the user's own, and private."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
    except OSError:
        return False
    if not stat.S_ISDIR(found.st_mode):
        return False
    if sys.platform == "win32":  # a user's LOCALAPPDATA is private
        return True
    return found.st_uid == os.getuid() and not found.st_mode & 0o077


def _delete_oldest(folder: Path, largest: int) -> None:
    """Delete the oldest programs until the rest is small enough."""
    with suppress(OSError):
        files = [(file.stat().st_mtime, file.stat().st_size, file) for file in folder.iterdir()]
        size = sum(size for _, size, _ in files)
        for _, of_file, file in sorted(files):
            if size <= largest:
                return
            with suppress(OSError):
                file.unlink()
            size -= of_file
