"""Tables in files: what is read, and what is said about files that can't be."""

import numpy as np
import pandas
import pytest

from deepprop.tables.kinds import kinds_of
from deepprop.tables.preparation import fitted
from deepprop.tables.read import is_table, read_table, typed

FRAME = pandas.DataFrame({"size": [1.5, np.nan, 3.0], "name": ["a", "b, c", None], "n": [1, 2, 3]})


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_csv_with_any_separator(tmp_path, separator):
    FRAME.to_csv(tmp_path / "t.csv", sep=separator, index=False)
    found = typed(read_table(str(tmp_path / "t.csv")))
    pandas.testing.assert_frame_equal(found, FRAME, check_dtype=False)


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
    with pytest.raises(
        ValueError, match=r"must hold a table here, .*array \(m,\) per column.*X \(2, 3\)"
    ):
        read_table(str(tmp_path / "t.npz"))


def test_a_byte_order_mark_spaces_and_marks_of_missing_values(tmp_path):
    (tmp_path / "t.csv").write_bytes("\ufeffage, city \n1, Rome\n?, NA\n,Oslo\n".encode())
    frame = read_table(str(tmp_path / "t.csv"))
    assert list(frame.columns) == ["age", "city"]
    assert frame["age"].isna().tolist() == [False, True, True]
    assert frame["city"].isna().tolist() == [False, True, False]


def test_a_decimal_comma_and_a_column_without_a_name(tmp_path):
    (tmp_path / "t.csv").write_text(";size\n0;1,5\n1;2,5\n")
    frame = typed(read_table(str(tmp_path / "t.csv"), decimal=","))
    assert frame.to_dict("list") == {"Unnamed: 0": [0, 1], "size": [1.5, 2.5]}


def test_ids_are_read_as_they_are_written(tmp_path):
    (tmp_path / "t.csv").write_text("zip,size\n01234,1\n00007,2\n")
    assert read_table(str(tmp_path / "t.csv"))["zip"].tolist() == ["01234", "00007"]


def test_types_of_columns():
    text = pandas.DataFrame({
        "whole": ["1", "-2", "9007199254740993"], "float": ["1", "2.5", "1e3"], "lacks": ["1", None, "3"],
        "zip": ["01234", "2345", "3"], "zero": ["0", "0.5", "0.25"], "truth": ["true", "False", "TRUE"],
        "some": ["true", None, "false"], "word": ["1", "2", "a"], "large": [str(2**80), "1", "2"],
    })  # fmt: skip
    frame = typed(text)
    kinds = {name: frame[name].dtype.kind for name in frame}
    assert {name for name, kind in kinds.items() if kind == "i"} == {"whole"}
    assert {name for name, kind in kinds.items() if kind == "b"} == {"truth"}
    assert {name for name, kind in kinds.items() if kind == "f"} == {
        "float", "lacks", "zero", "some", "large"
    }  # fmt: skip
    assert frame["whole"].tolist() == [1, -2, 2**53 + 1]  # floats have no such number
    assert frame["some"].tolist()[::2] == [1.0, 0.0]
    assert frame["zip"].tolist() == ["01234", "2345", "3"]


# A file with other values must give the same inputs for the same cells.
CELLS = [
    (["true", "false", "unknown"] * 9, ["true", "false", "true"]),
    (["true", "false", "true"] * 9, ["true", "unknown", "false"]),
    (["01234", "02345", "K1A"] * 9, ["01234", "02345", "01234"]),
    (["1", "2", "x"] * 9, ["1", "2", "1"]),
    (["1.0", "2.0", "x"] * 9, ["1", "2.0", "1.00"]),
    (["1", "2", "3"] * 9, ["1", "n", "3.0"]),
]


@pytest.mark.parametrize(("trained", "new"), CELLS)
def test_a_cell_means_the_same_in_every_file(trained, new):
    frame = typed(pandas.DataFrame({"a": trained, "y": "1"}))
    preparation = fitted(frame, kinds_of(frame, "y"), "y")
    together = preparation.encoded(pandas.DataFrame({"a": trained + new}))
    np.testing.assert_array_equal(together[: len(trained)], preparation.encoded(frame))
    alone = preparation.encoded(pandas.DataFrame({"a": new}))
    np.testing.assert_array_equal(alone, together[len(trained) :])
    known = [value for value in new if value not in ("unknown", "n")]
    row_of = dict(zip([*trained, "1.00", "3.0"], range(len(trained) + 2), strict=False))
    for value in known:
        as_trained = {
            "1.00": "1.0",
            "1": trained[0] if trained[0] in ("1.0", "1") else "1",
            "3.0": "3",
        }
        i = row_of.get(as_trained.get(value, value), row_of.get(value))
        np.testing.assert_array_equal(alone[new.index(value)], together[i])


def test_names_of_columns_that_look_missing(tmp_path):
    (tmp_path / "t.csv").write_text("NA,null,,y\n1,2,3,4\n")
    assert list(read_table(str(tmp_path / "t.csv")).columns) == ["NA", "null", "Unnamed: 2", "y"]


def test_none_is_a_level(tmp_path):
    (tmp_path / "t.csv").write_text("garage,y\nNone,1\nbrick,2\nNA,3\n")
    assert read_table(str(tmp_path / "t.csv"))["garage"].isna().tolist() == [False, False, True]


def test_one_column(tmp_path):
    (tmp_path / "t.csv").write_text("age\n1\n2\n")
    assert typed(read_table(str(tmp_path / "t.csv")))["age"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must have a line of names|can't be read as a table"),
        (b"a,b\n", "at least one row"),
        (b"a,b\n1,2\n1,2,3,4\n", "can't be read as a table"),
        (b"a,b\n1,2,x\n3,4,y\n", "has rows with more fields than there are names"),
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
