"""Unusual data files: names, dtypes, scales."""

import jax
import numpy as np
import pytest

import deepprop as dp
from deepprop.command.data import load_data, load_examples

RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 2))
LABELS = np.arange(60) % 3


TRAIN = {"x_train": X, "y_train": LABELS, "x_test": X, "y_test": LABELS}
TWICE = {  # names that differ only in case: the file, and the functions that read both
    "X and x": ({"X": X, "x": 0 * X, "y": LABELS}, (load_data, load_examples)),
    "x and X": ({"x": X, "X": X, "y": LABELS}, (load_data, load_examples)),
    "Y and y": ({"X": X, "Y": LABELS, "y": LABELS}, (load_data, load_examples)),
    "x_train and X_TRAIN": ({**TRAIN, "X_TRAIN": X}, (load_data,)),
    "y_train and Y_train": ({**TRAIN, "Y_train": X}, (load_data,)),
    "x_test and X_test": ({**TRAIN, "X_test": X}, (load_data, load_examples)),
    "y_test and y_TEST": ({**TRAIN, "y_TEST": X}, (load_data, load_examples)),
}


@pytest.mark.parametrize("case", TWICE)
def test_names_that_differ_only_in_case_are_refused(npz, case):
    arrays, readers = TWICE[case]
    for read in readers:
        with pytest.raises(ValueError, match=f"holds both {case}"):
            read(npz(**arrays))


def test_unused_names_may_differ_only_in_case(npz):
    path = npz(**TRAIN, X=X, x=X, a=X, A=X)
    assert load_data(path).X.shape == (2, 60)
    assert load_examples(path)[0].shape == (60, 2)


def test_unused_arrays_may_have_objects(npz):
    path = npz(X=X, y=LABELS, feature_names=np.array(["a", None], dtype=object))
    assert load_data(path).X.shape[0] == 2
    assert load_examples(path)[0].shape == (60, 2)


@pytest.mark.parametrize("name", ["X", "y"])
def test_an_error_for_objects_says_what_to_save(npz, name):
    arrays = {"X": X, "y": LABELS}
    arrays[name] = arrays[name].astype(object)
    for read in (load_data, load_examples):
        with pytest.raises(
            ValueError, match=rf"{name} holds Python objects.*{name}.astype\(str\).*astype\(float\)"
        ):
            read(npz(**arrays))


def _scale(npz, column):
    x = np.stack([RNG.standard_normal(len(column)).astype(column.dtype), column], axis=1)
    y = np.arange(len(x)) % 2
    return load_data(npz(x_train=x, y_train=y, x_test=x, y_test=y), standardize=True).scaling.scale


THREE = np.where(np.arange(100) % 2 == 0, 0.3, 0.1 * 3)  # differ in the last bit


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_a_column_that_is_constant_except_for_rounding_is_not_scaled(npz, dtype, size):
    column = np.full(100, size, dtype)
    assert _scale(npz, column)[1] == 1
    column[::2] = np.nextafter(column[::2], dtype(np.inf))
    assert _scale(npz, column)[1] == 1
    assert _scale(npz, (THREE * size).astype(dtype))[1] == 1


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64, np.bool_])
def test_a_column_that_varies_is_scaled_by_its_spread(npz, dtype):
    for column in (np.arange(100) % 2, 1 + 0.05 * (np.arange(100) % 2), 5 * (np.arange(100) == 7)):
        column = column.astype(dtype)
        if column.max() > column.min():
            np.testing.assert_allclose(_scale(npz, column)[1], column.std(dtype=np.float64))


def test_a_small_spread_of_many_examples_is_scaled(npz):
    """m eps is 0.04 here: a bound of m eps would take a spread of 1 % for rounding."""
    column = (1 + 0.01 * (np.arange(300_000) % 2)).astype(np.float32)
    np.testing.assert_allclose(_scale(npz, column)[1], 0.005, rtol=1e-4)


@pytest.mark.parametrize("size", [1e-300, 1e-160, 1e160, 1e300])
def test_standardize_numbers_whose_square_leaves_float64(npz, size):
    x = RNG.standard_normal((60, 2))
    data = load_data(npz(X=x * size, y=LABELS), standardize=True)
    both = np.concatenate([data.X, data.X_test], axis=1)  # a fifth is held out
    assert (abs(both.mean(axis=1)) < 0.5).all()
    np.testing.assert_allclose(data.X.std(axis=1), 1, rtol=1e-5)


def test_a_saved_scaling_is_the_one_of_training(npz, tmp_path):
    """`deepprop train` passes the pair to `save` unchanged."""
    data = load_data(npz(X=X, y=LABELS), standardize=True)
    params = dp.init_params(jax.random.key(0), [2, 3])
    dp.save(tmp_path / "m.npz", params, scaling=data.scaling, classes=data.classes)
    extra = dp.load_extra(tmp_path / "m.npz")
    np.testing.assert_array_equal(extra["scale"], data.scaling.scale)
    np.testing.assert_array_equal(extra["shift"], data.scaling.shift)


def test_two_layouts_in_one_file_are_refused(tmp_path):
    x, y = np.ones((4, 2)), np.array([0, 1, 0, 1])
    path = str(tmp_path / "both.npz")
    np.savez(path, x_train=x, y_train=y, X=x, y=y)
    with pytest.raises(ValueError, match="holds x_train and y_train, and X and y; keep one pair"):
        load_data(path)
