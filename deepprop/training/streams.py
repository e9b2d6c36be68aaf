"""Standard output and error that end no work: closed, full, a pipe that ends, any terminal."""

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any


class Tolerant:
    """A text stream that writes to another one, and after its first failure drops what comes.

    Characters that the other's encoding lacks are escaped.

    Attributes:
        error: the first failure, or None.
    """

    def __init__(self, stream: Any) -> None:
        """Take the other stream; None, as `sys.stdout` may be, drops everything."""
        self._stream = stream
        self.error: Exception | None = None

    def write(self, text: str) -> int:
        """Write the text, or drop it."""
        self._attempt(self._write, text)
        return len(text)

    def flush(self) -> None:
        """Flush the other stream, if it still works."""
        self._attempt(lambda: self._stream.flush())

    def isatty(self) -> bool:
        """Whether the other stream is a terminal."""
        with suppress(AttributeError, OSError, ValueError):
            return self.error is None and bool(self._stream.isatty())
        return False

    def fileno(self) -> int:
        """The descriptor of the other stream.

        Raises:
            OSError: it has none.
        """
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return int(self._stream.fileno())

    @property
    def encoding(self) -> str:
        """That of the other stream."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def __getattr__(self, name: str) -> Any:
        """Whatever else the other stream has."""
        return getattr(self._stream, name)

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
        except UnicodeEncodeError:  # raised before anything is written
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
    """Put tolerant streams in the place of `sys.stdout` and `sys.stderr`.

    Args:
        whole_process: whether the process has nothing else to do. Only then descriptors are
            touched: see `_fill_descriptors`, and what a broken stream still holds goes to nowhere,
            as Python would try to write it at exit, and complain.

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
    """Open those of standard input, output and error on nothing, where they are closed.

    Otherwise the next file that is opened, such as a model to be saved, would get the number, and
    with it what libraries print.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


def _to_nowhere(stream: Tolerant) -> None:
    """As Python's documentation has it for SIGPIPE: at exit the buffer is written without error."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
