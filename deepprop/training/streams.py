"""Output streams whose failures never end a run: a full disk, a broken pipe, a closed stream."""

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any


class Tolerant:
    """A text stream that writes to another one, and discards everything after the first failure.

    Characters that the other stream can't encode are escaped.

    Attributes:
        error: the first failure, or None.
    """

    def __init__(self, stream: Any) -> None:
        """Take the other stream; if it is None, as `sys.stdout` may be, discard everything."""
        self._stream = stream
        self.error: Exception | None = None

    def write(self, text: str) -> int:
        """Write the text, or discard it."""
        self._attempt(self._write, text)
        return len(text)

    def flush(self) -> None:
        """Flush the other stream, if it still works."""
        self._attempt(lambda: self._stream.flush())

    def isatty(self) -> bool:
        """Return whether the other stream is a terminal."""
        with suppress(AttributeError, OSError, ValueError):
            return self.error is None and bool(self._stream.isatty())
        return False

    def fileno(self) -> int:
        """Return the file descriptor of the other stream.

        Raises:
            OSError: it has none.
        """
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return int(self._stream.fileno())

    @property
    def encoding(self) -> str:
        """Return the encoding of the other stream."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def __getattr__(self, name: str) -> Any:
        """Return any other attribute of the other stream."""
        return getattr(self._stream, name)

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
        except UnicodeEncodeError:  # before anything was written
            self._stream.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))

    def _attempt(self, act: Callable[..., Any], *args: Any) -> None:
        if self._stream is None or self.error is not None:
            return
        try:
            act(*args)
        except (OSError, ValueError) as error:  # ValueError: it was closed in Python
            self.error = error


@contextmanager
def tolerant_streams(whole_process: bool) -> Iterator[Tolerant]:
    """Replace `sys.stdout` and `sys.stderr` with tolerant streams.

    Args:
        whole_process: whether the process runs nothing but the command. Only then may file
            descriptors change. Closed ones are opened on the null device (`_fill_descriptors`), and
            a broken stream is redirected there, because Python would otherwise try to write its
            buffer at exit and complain.

    Yields:
        The new `sys.stdout`.
    """
    before = sys.stdout, sys.stderr
    if whole_process:
        _fill_descriptors()
    streams = Tolerant(sys.stdout), Tolerant(sys.stderr)
    sys.stdout, sys.stderr = streams
    try:
        yield streams[0]
    finally:
        sys.stdout, sys.stderr = before
        for stream in streams:
            stream.flush()
            if whole_process and stream.error is not None:
                _to_nowhere(stream)


def _fill_descriptors() -> None:
    """Open closed standard descriptors on the null device.

    Otherwise the next file to be opened, such as a model to be saved, would get that number, and
    libraries would print into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number


def _to_nowhere(stream: Tolerant) -> None:
    """Redirect a stream to the null device, as Python's documentation recommends for SIGPIPE."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
