"""Loading data files: layouts, labels, scaling, errors."""

import hashlib
from importlib import resources

import numpy as np
import pytest

from deepprop.command.data import load_data, load_examples, scaled
from deepprop.files.archive import read_npz

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (30, 4, 3), dtype=np.uint8)
LABELS = np.arange(30) % 3


def test_the_digits():
    data = load_data(None)
    assert data.X.shape[0] == 64
    assert data.X.shape[1] + data.X_test.shape[1] == 1797
    assert (data.X.min(), data.X.max()) == (0.0, 1.0)
    assert data.classes.tolist() == list(range(10))
    assert (data.Y.sum(axis=0) == 1).all()


def test_the_digits_are_those_of_uci_with_their_licence():
    folder = resources.files("deepprop") / "digits"
    with resources.as_file(folder / "digits.npz") as path:
        arrays = read_npz(path)
    # The class distribution that UCI states for optdigits.tes.
    assert np.bincount(arrays["y"]).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert hashlib.sha256(arrays["x"].tobytes()).hexdigest().startswith("8f26b2bd9d135c25")
    assert "CC BY 4.0" in (folder / "LICENSE.txt").read_text()


def test_the_layout_of_keras_mnist(npz):
    path = npz(x_train=IMAGES[:20], y_train=LABELS[:20], x_test=IMAGES[20:], y_test=LABELS[20:])
    data = load_data(path)
    assert (data.X.shape, data.Y.shape) == ((12, 20), (3, 20))
    np.testing.assert_allclose(data.X[:, 4], IMAGES[4].ravel() / IMAGES[:20].max(), rtol=1e-6)
    np.testing.assert_array_equal(data.Y.argmax(axis=0), LABELS[:20])
    np.testing.assert_array_equal(data.Y_test.argmax(axis=0), LABELS[20:])


@pytest.mark.parametrize("names", [("X", "y"), ("x", "y"), ("X", "Y"), ("x_train", "y_train")])
def test_without_a_test_set_a_share_is_held_out(npz, names):
    path = npz(**dict(zip(names, (IMAGES, LABELS), strict=True)))
    data, same, other = (load_data(path, held_out=0.3, seed=seed) for seed in (0, 0, 1))
    assert (data.X.shape[1], data.X_test.shape[1]) == (21, 9)
    np.testing.assert_array_equal(data.X, same.X)
    assert not np.array_equal(data.X, other.X)
    together = np.concatenate([data.X, data.X_test], axis=1).T * data.scaling.scale
    assert sorted(map(tuple, together.round())) == sorted(map(tuple, IMAGES.reshape(30, -1)))


@pytest.mark.parametrize(
    ("y", "output", "shape"),
    [
        (LABELS, "softmax", 3),
        (np.array(["cat", "dog", "eel"])[LABELS], "softmax", 3),
        (LABELS[:, None] + 5, "softmax", 3),
        (LABELS == 1, "softmax", 2),
        (np.eye(3)[LABELS], "softmax", 3),
        (RNG.integers(0, 2, (30, 4)), "sigmoid", 4),
        (RNG.standard_normal(30), "identity", 1),
        (RNG.standard_normal((30, 2)), "identity", 2),
    ],
    ids=["labels", "text", "a column", "booleans", "one-hot", "several", "numbers", "rows"],
)
def test_the_output_suits_y(npz, y, output, shape):
    data = load_data(npz(X=IMAGES, y=y))
    assert (data.output, data.Y.shape[0]) == (output, shape)


def test_labels_become_the_classes(npz):
    data = load_data(npz(X=IMAGES, y=np.array(["eel", "cat", "dog"])[LABELS]))
    assert data.classes.tolist() == ["cat", "dog", "eel"]


def test_standardize(npz):
    x = RNG.standard_normal((30, 5)) * [1, 10, 100, 0, 3] + 7
    data = load_data(npz(X=x, y=LABELS), standardize=True)
    np.testing.assert_allclose(data.X.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(data.X.std(axis=1), [1, 1, 1, 0, 1], atol=1e-5)


def test_floats_are_not_scaled_and_the_test_set_has_the_same_scale(npz):
    x = RNG.standard_normal((30, 5))
    data = load_data(npz(x_train=x, y_train=LABELS, x_test=x[:6], y_test=LABELS[:6]))
    np.testing.assert_allclose(data.X.T, x, rtol=1e-6)
    np.testing.assert_allclose(data.X_test, data.X[:, :6])


def test_examples_to_predict(npz):
    path = npz(x_train=IMAGES, y_train=LABELS, x_test=IMAGES[:7], y_test=LABELS[:7])
    x, y = load_examples(path)
    assert (x.shape, y.shape) == ((7, 12), (7,))
    x, y = load_examples(npz(X=IMAGES))
    assert (x.shape, y) == ((30, 12), None)


BAD = {
    "no arrays": ({}, "must hold x_train, y_train, x_test and y_test, or X and y; holds nothing"),
    "other names": ({"a": IMAGES}, "must hold x_train.*; holds a"),
    "no y": ({"x_train": IMAGES}, "must hold x_train, y_train"),
    "half a test set": ({"X": IMAGES, "y": LABELS, "x_test": IMAGES}, "both x_test and y_test"),
    "another number": ({"X": IMAGES, "y": LABELS[:9]}, r"x and y must have one example per row.*\(30, 4, 3\) and \(9,\)"),
    "a scalar": ({"X": IMAGES, "y": np.array(1)}, "must have one example per row"),
    "one class": ({"X": IMAGES, "y": LABELS * 0}, "at least two classes"),
    "nan": ({"X": np.full((30, 2), np.nan), "y": LABELS}, "x must hold finite numbers, got nan at example 0, input 0"),
    "text for x": ({"X": np.full((30, 2), "a"), "y": LABELS}, "x must hold real numbers, got dtype <U1"),
    "complex y": ({"X": IMAGES, "y": LABELS * 1j}, "y must hold labels or numbers, got dtype complex128"),
    "x of rank 1": ({"X": LABELS, "y": LABELS}, r"x must have shape \(m, ...\)"),
    "nan in y": ({"X": IMAGES, "y": np.full(30, np.nan)}, "y_train must hold finite numbers"),
    "a new label": ({"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES, "y_test": LABELS + 1}, "y_test holds the label 3, which is not in training"),
    "other features": ({"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES[:, :2], "y_test": LABELS}, "x must have 12 features per example, as in training, got 6"),
    "other targets": ({"x_train": IMAGES, "y_train": np.ones((30, 2)) / 3, "x_test": IMAGES, "y_test": np.ones((30, 3))}, "y_train has 2 numbers per example, y_test 3"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_wrong_content_is_an_error(npz, case):
    arrays, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        load_data(npz(**arrays))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"output": "sigmoid"},
            r"y must lie in \[0, 1\] for the output sigmoid, got numbers from 0 to 2",
        ),
        (
            {"held_out": 0.0},
            "held_out must be a share that leaves examples on both sides, got 0 of 30",
        ),
        ({"held_out": 1.0}, "held_out must be a share"),
    ],
)
def test_options_that_do_not_fit(npz, options, message):
    with pytest.raises(ValueError, match=message):
        load_data(npz(X=IMAGES, y=LABELS), **options)


def test_scaled_checks_the_features():
    data = load_data(None)
    with pytest.raises(
        ValueError, match="x must have 64 features per example, as in training, got 3"
    ):
        scaled(np.ones((2, 3)), data.scaling)
