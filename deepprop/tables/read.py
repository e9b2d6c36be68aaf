"""Read a table from a file: CSV, Parquet, or a NumPy archive with an array per column."""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from deepprop._checks import missing
from deepprop.files.archive import as_text, npz_names, read_npz

CSV, PARQUET = (".csv", ".tsv", ".txt"), (".parquet", ".pq")
SEPARATORS = ",;\t|"
START = 2**16  # characters in which the separator is looked for
NO_VALUE = ["?"]  # what counts as missing besides pandas' own, such as an empty field or NA


def is_table(path: str | None) -> bool:
    """Return whether the file's ending is that of a table."""
    return path is not None and Path(path).suffix.lower() in (*CSV, *PARQUET)


def read_table(path: str) -> Any:
    """Read a file into a pandas DataFrame.

    Args:
        path: the file. Its extension determines the format; the first line of a CSV file names the
            columns.

    Raises:
        ValueError: it can't be read as a table, or has no rows, or two columns of one name.
        OSError: it can't be opened.
        ImportError: pandas, or what it needs for Parquet, is missing.
    """
    try:
        import pandas
    except ImportError:
        raise missing("a table", "pandas", "tables") from None
    ending = Path(path).suffix.lower()
    if ending == ".npz":
        return _checked(path, pandas.DataFrame(_arrays(path)))
    if ending not in (*CSV, *PARQUET):
        raise ValueError(f"{path}: must end in {', '.join((*CSV, *PARQUET))} or .npz")
    try:
        if ending in PARQUET:
            return _checked(path, pandas.read_parquet(path))
        with open(path, encoding="utf-8-sig", newline="") as file:
            separator = _separator(path, file.read(START))
        options = {"sep": separator, "encoding": "utf-8-sig", "skipinitialspace": True}
        read = pandas.read_csv(path, na_values=NO_VALUE, low_memory=False, **options)
        # pandas renames columns that have one name: a, a becomes a, a.1
        read.columns = pandas.read_csv(path, header=None, nrows=1, dtype=str, **options).iloc[0]
    except ImportError:
        raise missing("a Parquet file", "pyarrow", "tables") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: must be text in UTF-8: {error}") from None
    except (pandas.errors.ParserError, pandas.errors.EmptyDataError) as error:
        raise ValueError(f"{path}: can't be read as a table: {error}") from None
    except OSError:
        raise
    except Exception as error:  # pyarrow's errors have many types
        raise ValueError(f"{path}: {type(error).__name__}: {error}") from None
    return _checked(path, read)


def _arrays(path: str) -> dict[str, np.ndarray]:
    """Return the arrays of an archive, which must be columns of one length."""
    names = npz_names(path)
    arrays = {name: as_text(name, array) for name, array in read_npz(path, names).items()}
    shapes = {name: array.shape for name, array in arrays.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise ValueError(
            f"{path}: must hold an array (m,) per column, as --target names one of them; holds"
            f" {', '.join(f'{name} {shape}' for name, shape in shapes.items())}"
        )
    return arrays


def _separator(path: str, start: str) -> str:
    """Return what separates the columns in the first lines of a CSV file."""
    if "\0" in start:
        raise ValueError(f"{path}: must be text, one row per line")
    lines = start.splitlines()
    head = lines[0] if lines else ""
    if not any(sign in head for sign in SEPARATORS):
        return ","  # a single column
    try:
        return csv.Sniffer().sniff("\n".join(lines[:20]), SEPARATORS).delimiter
    except csv.Error:
        return max(SEPARATORS, key=head.count)


def _checked(path: str, frame: Any) -> Any:
    """Return the table, with text as names of its columns.

    Raises:
        ValueError: it has no rows, or two columns have one name.
    """
    frame.columns = [str(name).strip() for name in frame.columns]
    if not len(frame) or not len(frame.columns):
        raise ValueError(f"{path}: must have a line of names and at least one row")
    names = list(frame.columns)
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"{path}: must have unique column names, got {twice[0]!r} twice")
    return frame
