"""What people have in their files beside the usual: names, types, labels, numbers of every size."""

import jax
import numpy as np
import pytest

import deepprop as dp
from deepprop.command.data import load_data, load_examples
from deepprop.command.targets import encoded

RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 2))
LABELS = np.arange(60) % 3


@pytest.fixture
def npz(tmp_path):
    def write(**arrays):
        np.savez(tmp_path / "data.npz", **arrays)
        return str(tmp_path / "data.npz")

    return write


TRAIN = {"x_train": X, "y_train": LABELS, "x_test": X, "y_test": LABELS}
TWICE = {  # names that differ in capitals alone: the file, and the functions that use both
    "X and x": ({"X": X, "x": 0 * X, "y": LABELS}, (load_data, load_examples)),
    "x and X": ({"x": X, "X": X, "y": LABELS}, (load_data, load_examples)),
    "Y and y": ({"X": X, "Y": LABELS, "y": LABELS}, (load_data, load_examples)),
    "x_train and X_TRAIN": ({**TRAIN, "X_TRAIN": X}, (load_data,)),
    "y_train and Y_train": ({**TRAIN, "Y_train": X}, (load_data,)),
    "x_test and X_test": ({**TRAIN, "X_test": X}, (load_data, load_examples)),
    "y_test and y_TEST": ({**TRAIN, "y_TEST": X}, (load_data, load_examples)),
}


@pytest.mark.parametrize("case", TWICE)
def test_names_that_differ_in_capitals_alone(npz, case):
    arrays, readers = TWICE[case]
    for read in readers:
        with pytest.raises(ValueError, match=f"holds both {case}"):
            read(npz(**arrays))


def test_names_that_are_not_used_may_differ_in_capitals_alone(npz):
    path = npz(**TRAIN, X=X, x=X, a=X, A=X)
    assert load_data(path).X.shape == (2, 60)
    assert load_examples(path)[0].shape == (60, 2)


def test_arrays_that_are_not_used_may_hold_objects(npz):
    path = npz(X=X, y=LABELS, feature_names=np.array(["a", None], dtype=object))
    assert load_data(path).X.shape[0] == 2
    assert load_examples(path)[0].shape == (60, 2)


@pytest.mark.parametrize("name", ["X", "y"])
def test_an_array_of_objects_is_named_with_its_cure(npz, name):
    arrays = {"X": X, "y": LABELS}
    arrays[name] = arrays[name].astype(object)
    for read in (load_data, load_examples):
        with pytest.raises(
            ValueError, match=rf"{name} holds Python objects.*{name}.astype\(str\).*astype\(float\)"
        ):
            read(npz(**arrays))


def test_labels_as_bytes_are_text(npz):
    text = np.array(["hund", "katze", "k\u00e4fer"])[LABELS]
    data = [load_data(npz(X=X, y=y)) for y in (text, np.char.encode(text, "utf-8"))]
    assert data[0].classes.tolist() == data[1].classes.tolist() == ["hund", "katze", "k\u00e4fer"]
    np.testing.assert_array_equal(data[0].Y, data[1].Y)
    assert load_examples(npz(X=X, y=text))[1].dtype.kind == "U"
    assert load_examples(npz(X=X, y=np.char.encode(text, "utf-8")))[1].tolist() == text.tolist()
    with pytest.raises(ValueError, match=r"y must be text or bytes in UTF-8, got .*\\xe4"):
        load_data(npz(X=X, y=np.char.encode(text, "latin-1")))


@pytest.mark.parametrize(
    ("classes", "labels", "units"),
    [
        (["malignant", "benign"], ["benign", "malignant", "malignant"], [1, 0, 0]),
        ([30, -1, 7], [7, 30, -1], [2, 0, 1]),
        ([0, 1], [1.0, 0.0, 1.0], [1, 0, 1]),
        ([1.0, 0.0], [1, 0, 1], [0, 1, 0]),
        ([True, False], [1, 0, 0], [0, 1, 1]),
        ([1, 0], [True, False, True], [0, 1, 0]),
        ([2**53 + 1, 2**53], [2**53, 2**53 + 1, 2**53], [1, 0, 1]),
    ],
    ids=["text", "numbers", "floats", "ints", "booleans", "booleans for ints", "large"],
)
def test_classes_in_any_order(classes, labels, units):
    Y = encoded(np.array(labels), np.array(classes), "y")
    np.testing.assert_array_equal(Y, np.eye(len(classes))[:, units])
    np.testing.assert_array_equal(encoded(np.array(labels)[:, None], np.array(classes), "y"), Y)


@pytest.mark.parametrize(
    ("classes", "labels", "strange"),
    [
        (["b", "a"], ["a", "c"], "c"),
        (["b", "a"], [0, 1], "0"),
        ([1, 0], ["1", "0"], "0"),
        ([1, 0], [0.0, 0.5], "0.5"),
        ([1, 0], [0.0, np.nan], "nan"),
        ([2**53, 1], [2**53 + 1, 1], str(2**53 + 1)),
    ],
)
def test_labels_that_are_not_among_the_classes(classes, labels, strange):
    with pytest.raises(ValueError, match=f"y holds the label {strange}, which is not in training"):
        encoded(np.array(labels), np.array(classes), "y")


ONE_HOT = np.eye(3)[LABELS]
INFERRED = {
    "whole numbers": (LABELS, None, "softmax", "3 classes, as y holds whole numbers (--output identity: numbers)"),
    "text": (LABELS.astype(str), None, "softmax", "3 classes, as y holds text"),
    "booleans": (LABELS == 1, None, "softmax", "2 classes, as y holds True and False (--output sigmoid: a probability)"),
    "floats": (X[:, 0], None, "identity", "numbers, 1 per example, as y holds floats (--output softmax: classes)"),
    "floats of 0 and 1": ((LABELS == 1) * 1.0, None, "identity", "numbers, 1 per example, as y holds floats, all 0 or 1 (--output softmax: classes; sigmoid: a probability)"),
    "one-hot": (ONE_HOT, None, "softmax", "3 classes, as y holds one-hot rows (--output sigmoid: several may be 1)"),
    "several": (RNG.integers(0, 2, (60, 4)), None, "sigmoid", "probabilities, 4 per example, as y holds rows of 0 and 1 (--output identity: any numbers)"),
    "rows": (X, None, "identity", "numbers, 2 per example, as y holds rows of numbers"),
    "asked for classes": ((LABELS == 1) * 1.0, "softmax", "softmax", "2 classes, by --output"),
    "asked for numbers": (LABELS, "identity", "identity", "numbers, 1 per example, by --output"),
    "asked for another": (X[:, 0], "tanh+huber", "tanh+huber", "numbers, 1 per example, by --output"),
}  # fmt: skip


@pytest.mark.parametrize("case", INFERRED)
def test_what_y_was_taken_for_is_said(npz, case):
    y, asked, output, words = INFERRED[case]
    data = load_data(npz(X=X, y=y), output=asked)
    assert (data.output, data.targets) == (output, words)


MANY = np.r_[np.arange(150), np.arange(110)]


@pytest.mark.parametrize("y", [np.arange(60), np.r_[np.zeros(50, int), np.arange(10)]])
def test_whole_numbers_that_are_seldom_equal_need_an_option(npz, y):
    path = npz(X=X, y=y)
    with pytest.raises(ValueError, match=r"once: choose --output identity .* --output softmax"):
        load_data(path)
    assert load_data(path, output="identity").Y.shape[0] == 1
    assert load_data(path, output="softmax").Y.shape[0] == len(np.unique(y))


@pytest.mark.parametrize(
    ("y", "output"),
    [(MANY, "softmax"), (MANY.astype(str), "softmax"), (MANY.astype(str), None)],
)
def test_any_number_of_classes_where_they_are_asked_for_or_text(npz, y, output):
    data = load_data(npz(X=RNG.standard_normal((260, 4)), y=y), output=output)
    assert data.classes.tolist() == np.unique(y).tolist()


@pytest.mark.parametrize(
    ("y", "output", "message"),
    [
        (np.where(LABELS == 0, 1e300, X[:, 0]), None, r"y_train must hold .* range of float32, got 1e\+300"),
        (np.where(LABELS == 0, np.nan, X[:, 0]), None, "y_train must hold finite numbers .*, got nan at"),
        (np.where(LABELS == 0, np.inf, X[:, 0]), None, "y_train must hold finite numbers .*, got inf at"),
        (np.where(LABELS == 0, np.nan, 1.0 * LABELS), "softmax", "y must hold finite labels, got nan"),
        (np.where(LABELS == 0, -np.inf, 1.0 * LABELS), "softmax", "y must hold finite labels, got -inf"),
        (np.full((60, 2), 1e300), None, r"y_train must hold .* got 1e\+300 at example 0"),
    ],
)  # fmt: skip
def test_targets_that_are_no_numbers_for_float32(npz, y, output, message):
    with pytest.raises(ValueError, match=message):
        load_data(npz(X=X, y=y), output=output)


def _scale(npz, column):
    x = np.stack([RNG.standard_normal(len(column)).astype(column.dtype), column], axis=1)
    y = np.arange(len(x)) % 2
    return load_data(npz(x_train=x, y_train=y, x_test=x, y_test=y), standardize=True).scaling.scale


THREE = np.where(np.arange(100) % 2 == 0, 0.3, 0.1 * 3)  # differ in the last bit


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_a_column_that_is_constant_but_for_rounding_is_not_scaled(npz, dtype, size):
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
    """m eps is 0.04 here, so that by that bound alone a spread of 1 % would be rounding."""
    column = (1 + 0.01 * (np.arange(300_000) % 2)).astype(np.float32)
    np.testing.assert_allclose(_scale(npz, column)[1], 0.005, rtol=1e-4)


@pytest.mark.parametrize("size", [1e-300, 1e-160, 1e160, 1e300])
def test_standardize_numbers_whose_square_float64_has_not(npz, size):
    x = RNG.standard_normal((60, 2))
    data = load_data(npz(X=x * size, y=LABELS), standardize=True)
    both = np.concatenate([data.X, data.X_test], axis=1)  # a fifth is held out
    assert (abs(both.mean(axis=1)) < 0.5).all()
    np.testing.assert_allclose(data.X.std(axis=1), 1, rtol=1e-5)


def test_a_saved_scaling_is_the_one_of_training(npz, tmp_path):
    """`deepprop train` hands the pair to `save` as it is."""
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
