"""Archives run no code, and files are written completely or not at all."""

import gzip
import os
import pickle
import re
import warnings
import zipfile

import jax
import numpy as np
import pytest

import deepprop as dp
from deepprop.command.data import load_data, load_examples
from deepprop.files.archive import atomic_write, check_writable, read_npz


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("code ran from a file",))


def test_no_code_runs_from_a_strangers_file(tmp_path):
    bomb = np.array([Bomb()], dtype=object)
    np.savez(tmp_path / "objects.npz", format="deepprop model 1", activations=bomb, dtype="float32")
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(Bomb()))
    np.save(tmp_path / "array.npy", bomb)
    for name, message in (
        ("objects.npz", "activations holds Python objects"),
        ("pickle.npz", "not a NumPy .npz archive that can be read, but a pickle"),
        ("array.npy", "not a NumPy .npz archive that can be read, but a .npy file"),
    ):
        for read in (dp.load, dp.load_extra):
            with pytest.raises(ValueError, match=f"{name}: {message}"):
                read(tmp_path / name)


def _saved(tmp_path):
    dp.save(tmp_path / "model.npz", dp.init_params(jax.random.key(0), [4, 5, 3]))
    return tmp_path / "model.npz"


def test_a_failed_write_keeps_the_old_file(tmp_path):
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


def test_whoever_reads_the_old_file_still_has_it(tmp_path):
    """The new file takes the name; it does not overwrite the bytes, which a crash could cut off."""
    path = tmp_path / "m.npz"
    path.write_bytes(b"old")
    with path.open("rb") as reader:
        with atomic_write(path) as file:
            file.write(b"new")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"


def test_writing_preserves_links_and_permissions(tmp_path):
    params = dp.init_params(jax.random.key(0), [2, 1])
    (tmp_path / "real.npz").write_bytes(b"old")
    (tmp_path / "real.npz").chmod(0o600)
    (tmp_path / "link.npz").symlink_to("real.npz")
    dp.save(tmp_path / "link.npz", params)
    assert (tmp_path / "link.npz").is_symlink()
    assert (tmp_path / "real.npz").stat().st_mode & 0o777 == 0o600
    assert dp.load(tmp_path / "real.npz")[0].W.shape == (1, 2)


def test_an_unwritable_path_is_reported_before_the_work(tmp_path):
    for path, error in ((tmp_path, IsADirectoryError), (tmp_path / "no" / "x", FileNotFoundError)):
        with pytest.raises(error) as caught:
            check_writable(path)
        assert caught.value.filename == str(path)
    (tmp_path / "there").write_text("kept")
    check_writable(tmp_path / "there")
    check_writable(tmp_path / "new")
    assert [p.name for p in tmp_path.iterdir()] == ["there"]
    assert (tmp_path / "there").read_text() == "kept"


def test_damaged_members_raise_a_value_error(tmp_path):
    """Without a check, each would raise a different error deep in NumPy or a decoder."""
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


def test_an_error_while_saving_names_only_the_file(tmp_path, monkeypatch):
    """The usual case is a missing folder; a second file name, None, must not appear."""
    monkeypatch.chdir(tmp_path)
    params = dp.init_params(jax.random.key(0), [2, 2])
    for path, error in (
        ("nodir/m.npz", "[Errno 2] No such file or directory: 'nodir/m.npz'"),
        (".", "[Errno 21] Is a directory: '.'"),
        ("file/m.npz", "[Errno 20] Not a directory: 'file/m.npz'"),
    ):
        (tmp_path / "file").write_text("kept")
        for write in (lambda path: dp.save(path, params), lambda path: dp.export(path, params)):
            with pytest.raises(OSError, match=re.escape(error)) as caught:
                write(path)
            assert str(caught.value) == error


def test_only_a_regular_file_is_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="Not a regular file"):
        dp.save(tmp_path / "pipe", dp.init_params(jax.random.key(0), [2, 2]))
    assert (tmp_path / "pipe").is_fifo()


def _other_files(folder):
    """Return files that people pass instead of an archive, with what the error says."""
    (folder / "a.csv").write_text("1,2,3\n")
    (folder / "umlauts.csv").write_bytes(("\u00e9" * 300).encode())  # cut within a character
    (folder / "latin.csv").write_bytes("\u00e9 and more".encode("latin-1"))
    np.save(folder / "x.npy", np.ones(3))
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "empty").write_bytes(b"")
    (folder / "p.pkl").write_bytes(pickle.dumps({"X": 1}))
    (folder / "d.csv.gz").write_bytes(gzip.compress(b"1,2,3"))
    return {
        "a.csv": "text, such as a CSV", "umlauts.csv": "text, such as a CSV",
        "latin.csv": "of an unknown format", "x.npy": "a .npy file", "folder": "a folder",
        "pipe": "a named pipe", "empty": "empty", "p.pkl": "a pickle", "d.csv.gz": "compressed",
    }  # fmt: skip


def test_the_error_names_the_kind_of_a_wrong_file(tmp_path):
    for name, what in _other_files(tmp_path).items():
        for read, wanted in (
            (dp.load, "a model is written by dp.save"),
            (dp.load_extra, "a model is written by dp.save"),
            (load_data, r"np.savez\(path, X=X, y=y\) writes one"),
            (load_examples, r"np.savez\(path, X=X, y=y\) writes one"),
        ):
            with pytest.raises(ValueError, match=f"{name}: not a .*, but {what}.*; {wanted}"):
                read(str(tmp_path / name))


def test_a_duplicate_name_is_an_error(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):
            archive.writestr("X.npy", b"")
    with pytest.raises(ValueError, match="holds X twice"):
        read_npz(tmp_path / "m.npz")
