"""The preparation of a table, beside scikit-learn's imputer and encoder."""

import numpy as np
import pandas
import pytest
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder

from deepprop.tables.kinds import kinds_of, text_of
from deepprop.tables.preparation import LEVELS, fitted, from_arrays

RNG = np.random.default_rng(0)
AGE = np.where(RNG.random(200) < 0.2, np.nan, RNG.integers(18, 80, 200))
CITY = np.where(RNG.random(200) < 0.1, None, RNG.choice(["Rome", "Oslo", "Bonn"], 200))
FRAME = pandas.DataFrame({"age": AGE, "city": CITY, "size": RNG.normal(size=200), "y": 1})


def prepared(frame, target="y", **choices):
    return fitted(frame, kinds_of(frame, target, **choices), target)


def test_it_is_scikit_learns_imputer_and_encoder():
    preparation = prepared(FRAME)
    x = preparation.encoded(FRAME)
    imputed = SimpleImputer(strategy="median", add_indicator=True).fit_transform(FRAME[["age"]])
    hot = OneHotEncoder(sparse_output=False).fit_transform(FRAME[["city"]].fillna("~"))  # ~ is last
    np.testing.assert_array_equal(x, np.hstack([imputed, hot, FRAME[["size"]]]))
    assert preparation.names() == [
        "age", "age missing", "city=Bonn", "city=Oslo", "city=Rome", "city missing", "size"
    ]  # fmt: skip
    assert preparation.are_numbers().tolist() == [True, *[False] * 5, True]


def test_what_training_has_not_seen():
    complete = FRAME.dropna()
    preparation = prepared(complete)
    new = pandas.DataFrame({"size": [1.0, np.nan], "city": ["Wien", None], "age": [np.nan, 30.0]})
    x = preparation.encoded(new)  # its columns are in another order
    median = complete[["age", "size"]].median()
    np.testing.assert_array_equal(
        x, [[median["age"], 0, 0, 0, 1.0], [30.0, 0, 0, 0, median["size"]]]
    )


def test_whole_numbers_are_the_same_levels_if_one_is_missing():
    preparation = prepared(pandas.DataFrame({"zip": [10, 20, 10], "y": 1}), categories=["zip"])
    assert preparation.levels == (("10", "20"),)
    x = preparation.encoded(pandas.DataFrame({"zip": [10.0, np.nan, 20.0]}))
    np.testing.assert_array_equal(x, [[1, 0], [0, 0], [0, 1]])
    assert text_of(pandas.Series([1.5, 2.0, np.nan])).tolist() == ["1.5", "2", ""]


def test_rare_levels_share_the_zeros():
    names = [f"n{i}" for i in range(LEVELS + 50)]
    frame = pandas.DataFrame({"name": names[:LEVELS] * 2 + names[LEVELS:], "y": 1})
    preparation = prepared(frame, categories=["name"])
    assert set(preparation.levels[0]) == set(names[:LEVELS])
    assert preparation.encoded(frame)[-1].sum() == 0


def test_text_in_a_column_of_numbers_counts_as_missing():
    frame = pandas.DataFrame({"age": ["31", "unknown", "45"], "y": 1})
    assert prepared(frame).levels == (("31", "45", "unknown"),)
    x = prepared(frame, numbers=["age"]).encoded(frame)
    np.testing.assert_array_equal(x, [[31, 0], [38, 1], [45, 0]])


def test_arrays_and_back():
    preparation = prepared(FRAME)
    arrays = preparation.arrays()
    assert all(array.dtype.kind in "Ufbi" for array in arrays.values())  # nothing to be pickled
    again = from_arrays(arrays)
    np.testing.assert_array_equal(again.encoded(FRAME), preparation.encoded(FRAME))
    assert again.target == "y"
    assert from_arrays({}) is None


@pytest.mark.parametrize(
    "change",
    [
        {"table_counts": np.array([0, 2, 0])},
        {"table_counts": np.array([0, -3, 6])},
        {"table_fill": np.array([np.nan, 0, 0])},
        {"table_missing": np.zeros(2, bool)},
        {"table_levels": np.arange(3)},
        {"table_target": np.array(["y"])},
        {"table_target": None},
    ],
)
def test_a_damaged_preparation_is_refused(change):
    arrays = {**prepared(FRAME).arrays(), **change}
    with pytest.raises(ValueError, match="the preparation of its table is damaged"):
        from_arrays({name: array for name, array in arrays.items() if array is not None})


def test_columns_that_can_t_be_used_are_left_out():
    frame = FRAME.assign(constant="a", empty=np.nan, id=[f"p{i}" for i in range(200)])
    kinds = kinds_of(frame, "y", ignore=["size"])
    assert kinds.of == {"age": "number", "city": "category"}
    assert kinds.left_out == {
        "constant": "one value", "empty": "no value", "id": "text, 200 different values"
    }  # fmt: skip
    assert "id" in kinds_of(frame, "y", categories=["id"]).of


@pytest.mark.parametrize(
    "dates",
    [
        ["2024-01-05", "2024-02-06", None],
        ["5.1.2024", "6.2.2024", "7.3.2024"],
        ["1/5/24", "2/6/24", "3/7/24"],
        ["2024-01-05T10:00", "2024-02-06 11:00:00", "2024-01-07"],
        pandas.to_datetime(["2024-01-05", "2024-02-06", "2024-03-07"]),
    ],
)
def test_dates_are_refused_with_a_hint(dates):
    frame = pandas.DataFrame({"when": dates, "n": [1, 2, 3], "y": 1})
    with pytest.raises(ValueError, match="'when' holds dates: leave it out with --ignore 'when'"):
        kinds_of(frame, "y")
    assert kinds_of(frame, "y", ignore=["when"]).of == {"n": "number"}


def test_a_version_is_no_date():
    frame = pandas.DataFrame({"version": ["1.2", "1.3", "2.0a"], "y": 1})
    assert kinds_of(frame, "y").of == {"version": "category"}


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"categories": ["town"]}, "'town' must be a column of the table, which has age, city"),
        ({"ignore": ["town"]}, "'town' must be a column"),
        ({"numbers": ["y"]}, "y is the --target"),
        ({"numbers": ["age"], "categories": ["age"]}, "must differ, got age in both"),
        ({"ignore": ["age", "city", "size"]}, "must have a column that can be an input"),
    ],
)
def test_bad_choices_are_named(choices, message):
    with pytest.raises(ValueError, match=message):
        kinds_of(FRAME, "y", **choices)


def test_a_missing_column_and_an_infinite_number_are_named():
    preparation = prepared(FRAME)
    with pytest.raises(
        ValueError, match="must have the columns city, too, which are inputs; it has age"
    ):
        preparation.encoded(FRAME[["age", "size"]])
    infinite = FRAME.assign(size=np.where(np.arange(200) == 7, np.inf, 1.0))
    with pytest.raises(ValueError, match="size must hold finite numbers, got inf in row 8"):
        preparation.encoded(infinite.sample(frac=1, random_state=0))  # in any order


def test_what_had_to_be_made_up_is_said():
    new = pandas.DataFrame(
        {"age": ["12 kg", "30", None], "size": 1.0, "city": ["Wien", "Rome", None]}
    )
    assert prepared(FRAME).surprises(new) == [
        ("missing", "age 1, city 1 of 3: imputed"),
        ("no number", "age 1, text such as '12 kg': imputed"),
        ("not seen", "city 'Wien' in training"),
    ]
    assert prepared(FRAME).surprises(FRAME.dropna()) == []


@pytest.mark.parametrize("ages", [["58,3"], ["58,3", None], ["old", "young"], ["12 kg", "13 kg"]])
def test_a_column_of_numbers_that_is_all_text_is_not_imputed(ages):
    new = pandas.DataFrame({"age": ages, "size": 1.0, "city": "Rome"})
    with pytest.raises(ValueError, match=rf"'age' must hold numbers, .* such as '{ages[0]}'"):
        prepared(FRAME).surprises(new)


@pytest.mark.parametrize(
    ("ages", "said"),
    [
        (["unknown", "unknown", "7"], ["no number"]),
        (["unknown"], ["no number"]),
        ([None, None], ["missing"]),
        (["unknown", None], ["missing", "no number"]),
    ],
)
def test_words_may_stand_for_missing_numbers(ages, said):
    new = pandas.DataFrame({"age": ages, "size": 1.0, "city": "Rome"})
    assert [label for label, _ in prepared(FRAME).surprises(new)] == said


def test_blanks_are_missing_values_in_columns_of_either_kind():
    new = pandas.DataFrame({"age": [" ", ""], "size": 1.0, "city": [" ", ""]})
    assert prepared(FRAME).surprises(new) == [("missing", "age 2, city 2 of 2: imputed")]


def test_a_few_words_among_numbers_count_as_missing():
    ages = [str(age) for age in range(30, 90)]
    ages[3] = "unknown"
    frame = pandas.DataFrame({"age": ages, "y": 1})
    assert kinds_of(frame, "y").of == {"age": "number"}
    assert prepared(frame).encoded(frame)[3].tolist() == [
        np.median(np.delete(np.arange(30, 90), 3)),
        1,
    ]


@pytest.mark.parametrize("form", ["{} kg", "${},234.50", "{},5", "{}%", "EUR {}", "-{},0"])
def test_numbers_that_are_written_with_more_are_refused(form):
    frame = pandas.DataFrame({"weight": [form.format(i) for i in range(40)], "y": 1})
    if form.startswith("EUR"):  # could as well be a code
        assert kinds_of(frame, "y").of == {"weight": "category"}
        return
    with pytest.raises(ValueError, match=r"'weight' holds text such as '.*0.*: make plain numbers"):
        kinds_of(frame, "y")
    assert kinds_of(frame, "y", categories=["weight"]).of == {"weight": "category"}


def test_short_levels_with_digits_are_categories():
    frame = pandas.DataFrame({"class": ["1st", "2nd", "3rd"] * 20, "y": 1})
    assert kinds_of(frame, "y").of == {"class": "category"}


def test_many_levels_that_occur_often_are_categories():
    frame = pandas.DataFrame({"town": [f"t{i % 150}" for i in range(600)], "y": 1})
    assert kinds_of(frame, "y").of == {"town": "category"}


def test_a_column_that_numbers_the_rows_is_left_out():
    frame = FRAME.assign(row=range(100, 300))
    assert kinds_of(frame, "y").left_out == {"row": "it numbers the rows"}
    assert "row" in kinds_of(frame, "y", numbers=["row"]).of


def test_a_column_of_numbers_without_any_is_refused():
    with pytest.raises(ValueError, match="'city' must hold a number in a training row"):
        prepared(FRAME, numbers=["city"])


def test_names_with_commas_are_quoted():
    frame = pandas.DataFrame({"age, years": [1, 2], "y": 1})
    with pytest.raises(ValueError, match='which has "age, years", y'):
        kinds_of(frame, "y", ignore=["age"])


def test_values_of_parquet():
    frame = pandas.DataFrame({
        "n": pandas.array([1.5, None, 2.0], "Float64"), "b": pandas.array([True, None, False], "boolean"),
        "c": pandas.Categorical(["x", None, "y"]), "y": 1,
    })  # fmt: skip
    x = prepared(frame, categories=["n"]).encoded(frame)
    assert x.tolist() == [
        [1, 0, 0, 1, 0, 1, 0, 0],
        [0, 0, 1, 0.5, 1, 0, 0, 1],
        [0, 1, 0, 0, 0, 0, 1, 0],
    ]
    with pytest.raises(ValueError, match="'l' must hold numbers or text, got list"):
        kinds_of(pandas.DataFrame({"l": [[1], [2]], "y": 1}), "y")
