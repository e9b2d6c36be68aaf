"""Tables in files: what is read, and what is said about files that can't be."""

import numpy as np
import pandas
import pytest

from deepprop.tables.read import is_table, read_table

FRAME = pandas.DataFrame({"size": [1.5, np.nan, 3.0], "name": ["a", "b, c", None], "n": [1, 2, 3]})


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_csv_with_any_separator(tmp_path, separator):
    FRAME.to_csv(tmp_path / "t.csv", sep=separator, index=False)
    pandas.testing.assert_frame_equal(read_table(str(tmp_path / "t.csv")), FRAME, check_dtype=False)


def test_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    FRAME.to_parquet(tmp_path / "t.parquet")
    pandas.testing.assert_frame_equal(
        read_table(str(tmp_path / "t.parquet")), FRAME, check_dtype=False
    )


def test_an_archive_of_columns(tmp_path):
    np.savez(tmp_path / "t.npz", size=[1.0, 2.0], name=["x", "y"])
    frame = read_table(str(tmp_path / "t.npz"))
    assert frame.to_dict("list") == {"size": [1.0, 2.0], "name": ["x", "y"]}
    np.savez(tmp_path / "t.npz", size=[1.0, 2.0], X=np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"must hold an array \(m,\) per column.*X \(2, 3\)"):
        read_table(str(tmp_path / "t.npz"))


def test_a_byte_order_mark_spaces_and_marks_of_missing_values(tmp_path):
    (tmp_path / "t.csv").write_bytes("\ufeffage, city \n1, Rome\n?, NA\n,Oslo\n".encode())
    frame = read_table(str(tmp_path / "t.csv"))
    assert list(frame.columns) == ["age", "city"]
    assert frame["age"].isna().tolist() == [False, True, True]
    assert frame["city"].isna().tolist() == [False, True, False]


def test_one_column(tmp_path):
    (tmp_path / "t.csv").write_text("age\n1\n2\n")
    assert read_table(str(tmp_path / "t.csv"))["age"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must have a line of names|can't be read as a table"),
        (b"a,b\n", "at least one row"),
        (b"a,b\n1,2\n1,2,3,4\n", "can't be read as a table"),
        (b"a,b\n\xff\xfe,2\n", "must be text in UTF-8"),
        (b"a,a\n1,2\n", "unique column names, got 'a' twice"),
        (b"PK\x03\x04\x00\x00", "must be text, one row per line"),
    ],
)
def test_a_file_that_is_no_table(tmp_path, content, message):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_table(str(tmp_path / "t.csv"))


def test_other_endings_and_missing_files(tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.csv"):
        read_table(str(tmp_path / "t.xlsx"))
    with pytest.raises(FileNotFoundError):
        read_table(str(tmp_path / "t.csv"))
    (tmp_path / "t.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"t\.parquet"):
        read_table(str(tmp_path / "t.parquet"))
    assert [is_table(p) for p in ("a.CSV", "a.parquet", "a.npz", None)] == [
        True,
        True,
        False,
        False,
    ]


def test_what_is_missing_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r'a table needs pandas.*the extra "tables" has it'):
        read_table("t.csv")
