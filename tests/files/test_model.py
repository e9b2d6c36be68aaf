"""A saved network loads as the same network, and other files are refused."""

import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deepprop as dp
from deepprop.files.archive import read_npz
from tests.problems import HIDDEN, problem


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("output", ["softmax", "tanh+huber(0.4)"])
def test_a_saved_network_loads_as_the_same_network(tmp_path, output, dtype):
    params = problem(0, [4] + [3] * len(HIDDEN) + [2], 5, HIDDEN, output, dtype=dtype)[0]
    dp.save(tmp_path / "model.npz", params, classes=np.array(["a", "b"]), epochs=np.ones(4))
    again = dp.load(tmp_path / "model.npz")
    assert jax.tree.structure(again) == jax.tree.structure(params)
    for p, q in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True):
        assert p.dtype == q.dtype
        np.testing.assert_array_equal(p, q)
    extra = dp.load_extra(tmp_path / "model.npz")
    assert extra["classes"].tolist() == ["a", "b"]
    assert sorted(extra) == ["classes", "epochs"]


def test_load_needs_your_own_activation(tmp_path):
    own = dp.Activation("own", jnp.sin, lambda Z, A: jnp.cos(Z))
    params = dp.init_params(jax.random.key(0), [2, 3, 1], hidden=own, output="identity")
    dp.save(tmp_path / "model.npz", params)
    assert dp.load(tmp_path / "model.npz", own=[own])[0].activation is own
    with pytest.raises(ValueError, match=r"model.npz: activation must be one of .*got 'own'.*own="):
        dp.load(tmp_path / "model.npz")


def _saved(tmp_path):
    dp.save(tmp_path / "model.npz", dp.init_params(jax.random.key(0), [4, 5, 3]))
    return tmp_path / "model.npz"


def test_damaged_files(tmp_path):
    whole = _saved(tmp_path).read_bytes()
    for name, content in {
        "empty": b"",
        "cut": whole[: len(whole) // 2],
        "flipped": whole[:200] + bytes(b ^ 255 for b in whole[200:260]) + whole[260:],
        "text": b"not an archive",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}: "):
            dp.load(tmp_path / name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "deepprop model 99"}, "not a model that deepprop saved"),
        ({"W1": np.ones((5, 3))}, r"W\[2\] must|W\[1\] must|n_l"),
        ({"b2": np.ones(3)}, r"b\[2\] must have shape \(3, 1\)"),
        ({"W2": None}, "the model lacks 'W2"),
        ({"activations": np.array(["relu", "relu"])}, "output must be one of"),
        ({"activations": np.array([], dtype="U1")}, "the model has no layer"),
        ({"dtype": "int32"}, "params must all have one floating dtype"),
        ({"dtype": "nonsense"}, "nonsense"),
        ({"W1": np.full((5, 4), "a")}, "model.npz"),
    ],
)
def test_a_file_that_is_not_a_network_is_refused(tmp_path, change, message):
    path = _saved(tmp_path)
    arrays = {**read_npz(path), **change}
    if "W1" in change and change["W1"].shape == (5, 3):
        arrays["W2"] = np.ones((3, 9))
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    with pytest.raises(ValueError, match=message):
        dp.load(path)


class Sparse:
    """A stand-in for scipy's sparse arrays."""

    def toarray(self):
        return np.ones(2)


OWN_ENTRIES = ["format", "dtype", "activations", "residual", "keep", "products", "contents"]
RESERVED = [*OWN_ENTRIES, "W1", "b1", "W2", "b7", "W10", "file", "allow_pickle", "W1.npy"]


@pytest.mark.parametrize("name", RESERVED)
def test_entry_names_are_reserved_for_every_network(tmp_path, name):
    params = dp.init_params(jax.random.key(0), [2, 1])
    with pytest.raises(ValueError, match=f"extra '{name}' must have another name"):
        dp.save(tmp_path / "model.npz", params, **{name: np.ones(3)})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (np.array([None]), ValueError, "extra 'x' must hold no objects"),
        (np.ma.masked_equal([1, 2], 2), TypeError, "extra 'x' must not be a masked array"),
        ([np.ma.masked_equal([1, 2], 2)], TypeError, r"extra 'x'\[0\] must not be a masked array"),
        (jnp.ones(2, jnp.bfloat16), ValueError, "extra 'x' must have one of NumPy's own dtypes"),
        ([[1], [1, 2]], ValueError, "extra 'x' must be an array of numbers or text"),
        (Sparse(), TypeError, r"extra 'x' must be a dense array, got a sparse Sparse: .*toarray"),
    ],
    ids=["objects", "masked", "masked within", "bfloat16", "ragged", "sparse"],
)
def test_extras_that_need_pickle_or_lose_data_are_refused(tmp_path, value, error, message):
    params = dp.init_params(jax.random.key(0), [2, 1])
    with pytest.raises(error, match=message):
        dp.save(tmp_path / "model.npz", params, x=value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("style", ["arguments", "extras"])
def test_scaling_and_classes_are_stored(tmp_path, style):
    params = dp.init_params(jax.random.key(0), [3, 2])
    shift, scale, classes = [1, 2, 3], jnp.array([0.1, 1.0, 10.0]), [b"katze", b"hund"]
    given = (
        {"scaling": (shift, scale)} if style == "arguments" else {"shift": shift, "scale": scale}
    )
    dp.save(tmp_path / "model.npz", params, classes=classes, note="any", **given)
    extra = dp.load_extra(tmp_path / "model.npz")
    assert sorted(extra) == ["classes", "note", "scale", "shift"]
    np.testing.assert_array_equal(extra["shift"], [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(extra["scale"], np.float32([0.1, 1, 10]).astype(np.float64))
    assert extra["classes"].tolist() == ["katze", "hund"]


def test_a_scaling_keeps_the_digits_of_float64(tmp_path):
    shift, scale = np.array([1 / 3, 1e300]), np.array([1 + 1e-15, 1e-300])
    params = dp.init_params(jax.random.key(0), [2, 2])
    dp.save(tmp_path / "model.npz", params, scaling=(shift, scale))
    extra = dp.load_extra(tmp_path / "model.npz")
    np.testing.assert_array_equal(extra["shift"], shift)
    np.testing.assert_array_equal(extra["scale"], scale)


ONES = np.ones(3)
BESIDE = {
    "a shift alone": ({"shift": ONES}, ValueError, "shift and scale must be given together, got shift alone"),
    "a scale alone": ({"scale": ONES}, ValueError, "shift and scale must be given together, got scale alone"),
    "both ways": ({"scaling": (ONES, ONES), "shift": ONES}, ValueError, "'shift' must not be given beside scaling"),
    "no pair": ({"scaling": ONES}, TypeError, r"scaling must be a pair \(shift, scale\)"),
    "another shape": ({"scaling": (ONES[:2], ONES)}, ValueError, r"scaling\[0\] must be 3 numbers, one per input"),
    "nan": ({"scaling": (ONES, ONES * np.nan)}, ValueError, r"scaling\[1\] must be 3 numbers.* all finite"),
    "a scale of 0": ({"scaling": (ONES, ONES * 0)}, ValueError, r"scaling\[1\] must have no 0"),
    "extras of 0": ({"shift": ONES, "scale": ONES * 0}, ValueError, r"scaling\[1\] must have no 0"),
    "masked": ({"scaling": (np.ma.masked_equal(ONES, 2), ONES)}, TypeError, r"scaling\[0\] must not be a masked"),
    "text for numbers": ({"scaling": ("abc", ONES)}, TypeError, r"scaling\[0\] must be an array of real numbers"),
    "three classes": ({"classes": ["a", "b", "c"]}, ValueError, "classes must be 2 labels"),
    "classes in a column": ({"classes": [["a"], ["b"]]}, ValueError, "classes must be 2 labels"),
    "equal classes": ({"classes": [0, 0]}, ValueError, "classes must be 2 different labels"),
    "equal as bytes": ({"classes": [b"a", b"a"]}, ValueError, "classes must be 2 different labels"),
    "nan for a class": ({"classes": [0.0, np.nan]}, ValueError, "classes must be 2 different labels"),
    "objects": ({"classes": np.array(["a", "b"], object)}, ValueError, r"classes must hold no objects.*astype\(str\)"),
    "dates": ({"classes": np.array(["2026", "2027"], "M8[Y]")}, ValueError, "classes must be 2 labels, numbers or text"),
    "bytes of another encoding": ({"classes": [b"\xe9", b"b"]}, ValueError, "classes must be text or bytes in UTF-8"),
    "masked classes": ({"classes": np.ma.masked_equal([1, 2], 2)}, TypeError, "classes must not be a masked array"),
}  # fmt: skip


@pytest.mark.parametrize("case", BESIDE)
def test_a_scaling_or_classes_that_do_not_fit(tmp_path, case):
    given, error, message = BESIDE[case]
    with pytest.raises(error, match=message):
        dp.save(tmp_path / "model.npz", dp.init_params(jax.random.key(0), [3, 2]), **given)
    assert not list(tmp_path.iterdir())


FORMATS = {
    1: {"format", "dtype", "activations", "W1", "b1", "W2", "b2"},
    2: {"format", "dtype", "activations", "residual", "keep", "products", "W1", "b1", "W2", "b2"},
    3: {*OWN_ENTRIES, "W1", "b1", "W2", "b2", "shift", "scale", "classes", "note"},
    4: {*OWN_ENTRIES, "normalize", "dropout", "W1", "b1", "W2", "b2", "note"},
}


def _of_format(path, form):
    """Write a file of that format with extras; formats 1 and 2 by hand, as 0.1.0 wrote them."""
    if form == 3:
        params = dp.init_params(jax.random.key(0), [4, 4, 3])
        dp.save(path, params, scaling=(np.zeros(4), np.ones(4)), classes=[2, 1, 0], note="any")
        return
    if form == 4:
        dp.save(path, dp.init_params(jax.random.key(0), [4, 4, 3], dropout=0.5), note="any")
        return
    static = {"residual": [True, False], "keep": [1, 1], "products": "bfloat16"}
    np.savez(
        path, format=f"deepprop model {form}", dtype="float32", activations=["relu", "softmax"],
        **(static if form == 2 else {}), W1=np.eye(4, dtype="f4"), b1=np.zeros((4, 1), "f4"),
        W2=np.ones((3, 4), "f4"), b2=np.zeros((3, 1), "f4"), shift=np.zeros(4), scale=np.ones(4),
    )  # fmt: skip


LOST = [(form, name) for form, names in FORMATS.items() for name in sorted(names)]


@pytest.mark.parametrize(("form", "name"), LOST)
def test_a_missing_entry_is_an_error(tmp_path, form, name):
    _of_format(tmp_path / "model.npz", form)
    assert len(dp.load(tmp_path / "model.npz")) == 2
    arrays = read_npz(tmp_path / "model.npz")
    del arrays[name]
    np.savez(tmp_path / "model.npz", **arrays)
    for read in (dp.load, dp.load_extra) if form == 3 else (dp.load,):
        with pytest.raises(ValueError, match=f"lacks.* '{name}'|not a model that deepprop saved"):
            read(tmp_path / "model.npz")


def test_handmade_files_in_the_formats_of_0_1_0(tmp_path):
    for form, residual, products in ((1, False, None), (2, True, jnp.bfloat16)):
        _of_format(tmp_path / "model.npz", form)
        params = dp.load(tmp_path / "model.npz")
        assert (params[0].residual, params[1].residual) == (residual, False)
        assert params[0].compute_dtype == products
        assert sorted(dp.load_extra(tmp_path / "model.npz")) == ["scale", "shift"]


@pytest.mark.parametrize("name", ["format-1", "format-2", "format-1-extras"])
def test_files_written_by_0_1_0(name):
    """Each file has X and the result of 0.1.0's `predict` for it."""
    path = Path(__file__).parents[1] / "data" / f"0.1.0-{name}.npz"
    params, extra = dp.load(path), dp.load_extra(path)
    np.testing.assert_allclose(dp.predict(params, extra["X"]), extra["A"], rtol=1e-5)
    if name == "format-1":
        assert sorted(extra) == ["A", "W9", "X", "classes", "scale", "shift"]
        assert params[0].activation.name == "leaky_relu(0.3)"
    elif name == "format-2":
        assert [layer.W.shape for layer in params] == [(4, 3), (3, 4, 4), (2, 4)]
        assert [(layer.residual, layer.keep) for layer in params] == [
            (False, 1),
            (True, 2),
            (False, 1),
        ]
        assert {layer.compute_dtype for layer in params} == {jnp.dtype("bfloat16")}
    else:  # which 0.1.0 itself took for entries of its own, and loaded another network
        assert sorted(extra) == ["A", "X", "keep", "products", "residual"]
        assert not any(layer.residual or layer.compute_dtype for layer in params)


def test_load_needs_your_own_cost(tmp_path):
    sine = dp.Activation("sine", jnp.sin, lambda Z, A: jnp.cos(Z))
    quartic = dp.Cost(
        "quartic", lambda A, Y: jnp.sum((A - Y) ** 4, -2), lambda A, Y: 4 * (A - Y) ** 3
    )
    for output in (("tanh", quartic), (sine, "huber"), (sine, quartic), (sine, "huber(0.5)")):
        params = dp.init_params(jax.random.key(0), [2, 3, 1], hidden=sine, output=output)
        dp.save(tmp_path / "model.npz", params)
        again = dp.load(tmp_path / "model.npz", own=[sine, quartic])
        assert jax.tree.structure(again) == jax.tree.structure(params)


def test_the_name_of_a_built_in_activation_is_refused(tmp_path):
    fake = dp.Activation("relu", jnp.sin, lambda Z, A: jnp.cos(Z))
    params = dp.init_params(jax.random.key(0), [2, 3, 1], hidden=fake)
    with pytest.raises(ValueError, match="'relu' has the name of a built-in one"):
        dp.save(tmp_path / "model.npz", params)
    assert not list(tmp_path.iterdir())


def test_the_file_has_only_plain_arrays(tmp_path):
    with zipfile.ZipFile(_saved(tmp_path)) as archive:
        names = {name.removesuffix(".npy") for name in archive.namelist()}
    assert names == {*OWN_ENTRIES, "W1", "b1", "W2", "b2"}


def test_normalisation_and_dropout_are_saved_and_other_files_stay_as_they_were(tmp_path):
    params = dp.init_params(jax.random.key(0), [4, 5, 3], normalize=["rms", "layer"], dropout=0.25)
    dp.save(tmp_path / "new.npz", params)
    again = dp.load(tmp_path / "new.npz")
    assert jax.tree.structure(again) == jax.tree.structure(params)
    assert [(p.normalize, p.dropout) for p in again] == [("rms", 0.0), ("layer", 0.25)]
    with pytest.raises(ValueError, match="extra 'dropout' must have another name"):
        dp.save(tmp_path / "new.npz", params, dropout=1.0)
    # In a file of a plain network these names are free, as before.
    plain = dp.init_params(jax.random.key(0), [4, 5, 3])
    dp.save(tmp_path / "plain.npz", plain, dropout=1.0)
    arrays = read_npz(tmp_path / "plain.npz")
    assert str(arrays["format"]) == "deepprop model 3"
    assert float(dp.load_extra(tmp_path / "plain.npz")["dropout"]) == 1.0
    assert jax.tree.structure(dp.load(tmp_path / "plain.npz")) == jax.tree.structure(plain)
