"""Whether y holds classes or numbers, and its encoding."""

import numpy as np
import pytest

from deepprop.command.data import load_data, load_examples
from deepprop.command.targets import encoded

RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 2))
LABELS = np.arange(60) % 3


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
def test_labels_outside_the_classes_are_an_error(classes, labels, strange):
    with pytest.raises(ValueError, match=f"y holds the label {strange}, which is not in training"):
        encoded(np.array(labels), np.array(classes), "y")


ONE_HOT = np.eye(3)[LABELS]
INFERRED = {
    "whole numbers": (LABELS, None, "softmax", "3 classes, as y holds whole numbers (--output identity for numbers)"),
    "text": (LABELS.astype(str), None, "softmax", "3 classes, as y holds text"),
    "booleans": (LABELS == 1, None, "softmax", "2 classes, as y holds True and False (--output sigmoid for a probability)"),
    "floats": (X[:, 0], None, "identity", "numbers, 1 per example, as y holds floats (--output softmax for classes)"),
    "floats of 0 and 1": ((LABELS == 1) * 1.0, None, "identity", "numbers, 1 per example, as y holds floats, all 0 or 1 (--output softmax for classes, sigmoid for a probability)"),
    "one-hot": (ONE_HOT, None, "softmax", "3 classes, as y holds one-hot rows (--output sigmoid if several may be 1)"),
    "several": (RNG.integers(0, 2, (60, 4)), None, "sigmoid", "probabilities, 4 per example, as y holds rows of 0 and 1 (--output identity for any numbers)"),
    "rows": (X, None, "identity", "numbers, 2 per example, as y holds rows of numbers"),
    "asked for classes": ((LABELS == 1) * 1.0, "softmax", "softmax", "2 classes, by --output"),
    "asked for numbers": (LABELS, "identity", "identity", "numbers, 1 per example, by --output"),
    "asked for another": (X[:, 0], "tanh+huber", "tanh+huber", "numbers, 1 per example, by --output"),
}  # fmt: skip


@pytest.mark.parametrize("case", INFERRED)
def test_the_inference_from_y_is_explained(npz, case):
    y, asked, output, words = INFERRED[case]
    data = load_data(npz(X=X, y=y), output=asked)
    assert (data.output, data.targets) == (output, words)


MANY = np.r_[np.arange(150), np.arange(110)]


@pytest.mark.parametrize("y", [np.arange(60), np.r_[np.zeros(50, int), np.arange(10)]])
def test_mostly_distinct_whole_numbers_need_an_option(npz, y):
    path = npz(X=X, y=y)
    with pytest.raises(ValueError, match=r"once: choose --output identity .* --output softmax"):
        load_data(path)
    assert load_data(path, output="identity").Y.shape[0] == 1
    assert load_data(path, output="softmax").Y.shape[0] == len(np.unique(y))


@pytest.mark.parametrize(
    ("y", "output"),
    [(MANY, "softmax"), (MANY.astype(str), "softmax"), (MANY.astype(str), None)],
)
def test_text_or_an_option_allows_any_number_of_classes(npz, y, output):
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
def test_targets_beyond_float32_are_an_error(npz, y, output, message):
    with pytest.raises(ValueError, match=message):
        load_data(npz(X=X, y=y), output=output)
