"""Pictures of what the inputs contributed."""

from pathlib import Path

import numpy as np
import pytest

import deepprop as dp

X = np.random.default_rng(0).random((12, 2)).astype(np.float32)


@pytest.mark.parametrize(
    ("X", "shape"), [(X[:9], None), (X, (3, 4)), (X, (2, 2, 3)), (0 * X, (4, 3))]
)
def test_a_picture_of_examples_and_shares(X, shape, tmp_path):
    path = tmp_path / "shares.png"
    titles = ["a 3", "an 8 that has $ and a long title"]
    dp.plot_attributions(path, X, X - 0.5, 0 * X, names=["one"], titles=titles, shape=shape)
    assert path.read_bytes()[:4] == b"\x89PNG"
    dp.plot_attributions(str(tmp_path / "alone.svg"), X, shape=shape)
    assert b"<svg" in (tmp_path / "alone.svg").read_bytes()


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        ((X, X), {}, TypeError, "path must be that of the file to write, got ndarray"),
        (("a.png", X), {}, ValueError, "12 numbers per example are not a square image: give shape"),
        (("a.png", X), {"shape": (3, 3)}, ValueError, r"image of 12 numbers, got \(3, 3\)"),
        (("a.png", X[0]), {}, ValueError, r"X must have shape \(n_0, m\)"),
        (("a.png", X, X.T), {}, ValueError, r"shares\[0\] must have the shape of X, \(12, 2\)"),
        (("a.png", X, X), {"names": "DeepLIFT"}, TypeError, "names and titles must be lists"),
        (("a.png", X, X), {"names": ["a", "b"]}, ValueError, "names must be at most 1"),
        (("a.xyz", X), {}, ValueError, "a.xyz must end in one of"),
    ],
)
def test_bad_input(args, options, error, message):
    with pytest.raises(error, match=message):
        dp.plot_attributions(*args, **options)
    assert not Path("a.png").exists()
