"""Models and data in files: nothing runs from them, and none is left half written."""

import pickle
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deepprop as dp
from deepprop.files import atomic_write, check_writable, read_npz
from tests.problems import HIDDEN, problem


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("output", ["softmax", "tanh+huber(0.4)"])
def test_a_saved_network_is_the_same_network(tmp_path, output, dtype):
    params = problem(0, [4] + [3] * len(HIDDEN) + [2], 5, HIDDEN, output, dtype=dtype)[0]
    dp.save(tmp_path / "model.npz", params, classes=np.array(["a", "b"]), scale=np.ones(4))
    again = dp.load(tmp_path / "model.npz")
    assert jax.tree.structure(again) == jax.tree.structure(params)
    for p, q in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True):
        assert p.dtype == q.dtype
        np.testing.assert_array_equal(p, q)
    extra = dp.load_extra(tmp_path / "model.npz")
    assert extra["classes"].tolist() == ["a", "b"]
    assert sorted(extra) == ["classes", "scale"]


def test_an_activation_of_your_own_is_given_again_to_load(tmp_path):
    own = dp.Activation("own", jnp.sin, lambda Z, A: jnp.cos(Z))
    params = dp.init_params(jax.random.key(0), [2, 3, 1], hidden=own, output="identity")
    dp.save(tmp_path / "model.npz", params)
    assert dp.load(tmp_path / "model.npz", own=[own])[0].activation is own
    with pytest.raises(ValueError, match=r"model.npz: activation must be one of .*got 'own'.*own="):
        dp.load(tmp_path / "model.npz")


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("code ran from a file",))


def test_no_code_runs_from_a_strangers_file(tmp_path):
    bomb = np.array([Bomb()], dtype=object)
    np.savez(tmp_path / "objects.npz", format="deepprop model 1", activations=bomb, dtype="float32")
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(Bomb()))
    np.save(tmp_path / "array.npy", bomb)
    for name in ("objects.npz", "pickle.npz", "array.npy"):
        with pytest.raises(ValueError, match=f"{name}: not a NumPy .npz archive that can be read"):
            dp.load(tmp_path / name)


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
        ({"dtype": "int32"}, "params must all have one floating type"),
        ({"dtype": "nonsense"}, "nonsense"),
        ({"W1": np.full((5, 4), "a")}, "model.npz"),
    ],
)
def test_files_that_are_no_network(tmp_path, change, message):
    path = _saved(tmp_path)
    arrays = {**read_npz(path), **change}
    if "W1" in change and change["W1"].shape == (5, 3):
        arrays["W2"] = np.ones((3, 9))
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    with pytest.raises(ValueError, match=message):
        dp.load(path)


def test_a_failure_while_writing_leaves_what_was_there(tmp_path):
    path = _saved(tmp_path)
    before = path.read_bytes()

    def write_half():
        with atomic_write(path) as file:
            file.write(b"half")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_half()
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.npz"]


def test_names_of_extra_arrays(tmp_path):
    params = dp.init_params(jax.random.key(0), [2, 1])
    with pytest.raises(ValueError, match="extra 'W1' must have a name of its own"):
        dp.save(tmp_path / "model.npz", params, W1=np.ones(3))
    with pytest.raises(ValueError, match=r"extra 'x' must .* hold no objects"):
        dp.save(tmp_path / "model.npz", params, x=np.array([None]))
    assert not list(tmp_path.iterdir())


def test_a_cost_of_your_own_is_given_again_to_load(tmp_path):
    sine = dp.Activation("sine", jnp.sin, lambda Z, A: jnp.cos(Z))
    quartic = dp.Cost(
        "quartic", lambda A, Y: jnp.sum((A - Y) ** 4, -2), lambda A, Y: 4 * (A - Y) ** 3
    )
    for output in (("tanh", quartic), (sine, "huber"), (sine, quartic), (sine, "huber(0.5)")):
        params = dp.init_params(jax.random.key(0), [2, 3, 1], hidden=sine, output=output)
        dp.save(tmp_path / "model.npz", params)
        again = dp.load(tmp_path / "model.npz", own=[sine, quartic])
        assert jax.tree.structure(again) == jax.tree.structure(params)


def test_a_name_of_another_that_ships_is_refused(tmp_path):
    fake = dp.Activation("relu", jnp.sin, lambda Z, A: jnp.cos(Z))
    params = dp.init_params(jax.random.key(0), [2, 3, 1], hidden=fake)
    with pytest.raises(ValueError, match="'relu' has the name of another that ships"):
        dp.save(tmp_path / "model.npz", params)
    assert not list(tmp_path.iterdir())


def test_a_link_stays_a_link_and_a_private_file_private(tmp_path):
    params = dp.init_params(jax.random.key(0), [2, 1])
    (tmp_path / "real.npz").write_bytes(b"old")
    (tmp_path / "real.npz").chmod(0o600)
    (tmp_path / "link.npz").symlink_to("real.npz")
    dp.save(tmp_path / "link.npz", params)
    assert (tmp_path / "link.npz").is_symlink()
    assert (tmp_path / "real.npz").stat().st_mode & 0o777 == 0o600
    assert dp.load(tmp_path / "real.npz")[0].W.shape == (1, 2)


def test_what_cannot_be_written_is_known_before_the_work(tmp_path):
    for path, error in ((tmp_path, IsADirectoryError), (tmp_path / "no" / "x", FileNotFoundError)):
        with pytest.raises(error) as caught:
            check_writable(path)
        assert caught.value.filename == str(path)
    (tmp_path / "there").write_text("kept")
    check_writable(tmp_path / "there")
    check_writable(tmp_path / "new")
    assert [p.name for p in tmp_path.iterdir()] == ["there"]
    assert (tmp_path / "there").read_text() == "kept"


def test_members_that_are_no_arrays(tmp_path):
    """Each would raise something of its own deep in NumPy or a decoder."""
    header = "{'descr': '<f8', 'fortran_order': False, 'shape': (%s,), }"
    for name, member in {
        "no magic": b"text",
        "a giant": np.lib.format.magic(1, 0) + b"v\0" + (header % 10**14).ljust(118).encode(),
        "a broken header": np.lib.format.magic(1, 0) + b"v\0" + b"((((".ljust(118),
    }.items():
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("x.npy", member)
        with pytest.raises(ValueError, match=f"{name}: not a NumPy .npz archive that can be read"):
            read_npz(tmp_path / name)


def test_the_file_is_plain_arrays(tmp_path):
    with zipfile.ZipFile(_saved(tmp_path)) as archive:
        names = {name.removesuffix(".npy") for name in archive.namelist()}
    assert names == {"format", "dtype", "activations", "W1", "b1", "W2", "b2"}
