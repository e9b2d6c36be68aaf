"""Read a table from a file: CSV, Parquet, or a NumPy archive with an array per column.

A CSV file is read as text. Its columns get types in one place, `typed`, and only for training: a
file with new rows may hold fewer of the values, and its columns must not mean something else.
"""

import csv
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from deepprop._checks import missing
from deepprop.files.archive import as_text, npz_names, read_npz

CSV, PARQUET = (".csv", ".tsv", ".txt"), (".parquet", ".pq")
SEPARATORS = ",;\t|"
START = 2**16  # characters in which the separator is looked for
NO_VALUE = ["", "?", "NA", "N/A", "n/a", "#N/A", "NaN", "nan", "NULL", "null"]  # missing
WHOLE = re.compile(r"[+-]?\d+$")
CODE = re.compile(r"[+-]?0\d")  # a number does not begin with such a 0
COMMA = r"^([+-]?\d+),(\d+)$"


def is_table(path: str | None) -> bool:
    """Return whether the file's ending is that of a table."""
    return path is not None and Path(path).suffix.lower() in (*CSV, *PARQUET)


def read_table(path: str, *, decimal: str = ".") -> Any:
    """Read a file into a pandas DataFrame; the columns of a CSV file hold text.

    Args:
        path: the file. Its extension determines the format; the first line of a CSV file names the
            columns.
        decimal: the decimal mark of a CSV file.

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
        read = _csv(path, separator)
    except ImportError:
        raise missing("a Parquet file", "pyarrow", "tables") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: must be text in UTF-8, save it as such: {error}") from None
    except (pandas.errors.ParserError, pandas.errors.EmptyDataError) as error:
        raise ValueError(f"{path}: can't be read as a table: {error}") from None
    except (OSError, ValueError):
        raise
    except Exception as error:  # pyarrow's errors have many types
        raise ValueError(f"{path}: {type(error).__name__}: {error}") from None
    if decimal == ",":
        read = read.apply(lambda column: column.str.replace(COMMA, r"\1.\2", regex=True))
    return _checked(path, read)


def _csv(path: str, separator: str) -> Any:
    """Read a CSV file as text.

    Raises:
        ValueError: its rows have more fields than there are names.
    """
    import pandas

    options = {"sep": separator, "encoding": "utf-8-sig", "skipinitialspace": True, "dtype": str}
    options["keep_default_na"] = False
    with warnings.catch_warnings():
        # Left to itself, pandas would take the first field of longer rows as an index.
        warnings.simplefilter("error", pandas.errors.ParserWarning)
        try:
            read = pandas.read_csv(path, na_values=NO_VALUE, index_col=False, **options)
        except pandas.errors.ParserWarning:
            raise ValueError(f"{path}: has rows with more fields than there are names") from None
    # pandas renames columns that have one name: a, a becomes a, a.1
    names = pandas.read_csv(path, header=None, nrows=1, **options).iloc[0, : read.shape[1]]
    read.columns = [name.strip() or f"Unnamed: {i}" for i, name in enumerate(names)]
    return read.apply(lambda column: column.str.strip())


def typed(frame: Any) -> Any:
    """Return the table with numbers for the columns of text that hold nothing else, or booleans.

    Digits after a leading 0 are a code, such as a postal code, and stay text.
    """
    return frame.apply(_typed)


def _typed(values: Any) -> Any:
    import pandas

    if values.dtype.kind in "buifmM" or not _is_text(values):
        return values
    known = values.dropna()
    if not len(known):
        return values
    if known.str.lower().isin(["true", "false"]).all():
        truth = values.str.lower() == "true"
        return truth if len(known) == len(values) else truth.astype(float).where(values.notna())
    if known.str.match(CODE).any():
        return values
    number = pandas.to_numeric(values, errors="coerce")
    if number.notna().sum() < len(known):
        return values
    if len(known) == len(values) and known.str.match(WHOLE).all():
        whole = [int(text) for text in known]
        if max(map(abs, whole)) < 2**63:
            return pandas.Series(whole, index=values.index, name=values.name, dtype=np.int64)
    return number.astype(float)


def _is_text(values: Any) -> bool:
    return bool(values.dropna().map(lambda value: isinstance(value, str)).all())


def _arrays(path: str) -> dict[str, np.ndarray]:
    """Return the arrays of an archive, which must be columns of one length."""
    names = npz_names(path)
    arrays = {name: as_text(name, array) for name, array in read_npz(path, names).items()}
    shapes = {name: array.shape for name, array in arrays.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise ValueError(
            f"{path}: must hold a table here, with an array (m,) per column; holds"
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
