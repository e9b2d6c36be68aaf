"""deepprop audit: from a file with planted mistakes to a list and a picture."""

import csv

import numpy as np
import pytest

from deepprop.command.audit import _title
from deepprop.command.cli import main
from deepprop.command.data import load_data
from tests.training.test_label_audit import flipped

pytestmark = pytest.mark.usefixtures("optax_types")


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """The digits with 3 % of their labels flipped, as images and labels in a file."""
    data = load_data(None)
    labels, bad = flipped(data.Y.argmax(0), 0.03)
    path = tmp_path_factory.mktemp("audit") / "digits.npz"
    x = np.round(data.X.T * 16).astype(np.uint8).reshape(-1, 8, 8)
    np.savez(path, X_train=x, y_train=labels + 10, x_test=x[:5], y_test=labels[:5] + 10)
    return path, labels + 10, bad


def test_a_file_of_images(planted, tmp_path, capsys):
    path, labels, bad = planted
    out, plot = tmp_path / "scores.csv", tmp_path / "suspects.png"
    assert (
        main(
            ["audit", "--data", str(path), "--out", str(out), "--plot", str(plot), "--repeats", "1"]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "test set   not audited" in printed
    assert f"saved      {out}" in printed
    with out.open() as file:
        head, *lines = csv.reader(file)
    assert head == ["example", "label", "suggested", "score"]
    assert len(lines) == len(labels)
    examples = np.array([int(line[0]) for line in lines])
    assert [int(line[1]) for line in lines] == labels[examples].tolist()
    assert bad[examples[: bad.sum()]].mean() > 0.8
    assert {int(line[2]) for line in lines} <= {*range(10, 20)}
    scores = [float(line[3]) for line in lines]
    assert scores == sorted(scores, reverse=True)
    assert plot.read_bytes()[:4] == b"\x89PNG"


def test_labels_above_an_image_are_cut():
    assert _title("4", "9") == "4 \N{RIGHTWARDS ARROW} 9"
    assert _title("a trouser", "coat") == "a trous\N{HORIZONTAL ELLIPSIS} \N{RIGHTWARDS ARROW} coat"


def test_a_table_prints_the_rows(tmp_path, capsys):
    random = np.random.default_rng(0)
    size, color = random.normal(size=120), random.choice(["red", "blue"], 120)
    kind = np.where((size > 0) == (color == "red"), "apple", "plum").astype(object)
    size[3], kind[3], kind[50] = 2.0, "plum" if color[3] == "red" else "apple", ""
    path = tmp_path / "fruit.csv"
    rows = zip([f"n{i}" for i in range(120)], size, color, kind, strict=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("name", "size", "color", "kind"), *rows])
    args = ["audit", "--data", str(path), "--target", "kind", "--id", "name", "--repeats", "1"]
    assert main(args) == 0
    printed = capsys.readouterr().out.splitlines()
    assert any(line.startswith("dropped    1 row without kind") for line in printed)
    head = next(i for i, line in enumerate(printed) if "suggested" in line)
    assert printed[head].split() == ["name", "label", "suggested", "score"]
    first = printed[head + 1].split()
    assert first[:3] == ["n3", str(kind[3]), "apple" if kind[3] == "plum" else "plum"]
    assert f"size=2, color={color[3]}" in printed[head + 1]
    assert "networks   predict 9" in printed[-1]
    assert "too little" not in printed[-1]
    assert main([*args, "--plot", str(tmp_path / "a.png")]) == 2
    assert "--plot needs images, and fruit.csv is a table" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--target", "y"], "--target needs --data, a table"),
        (["--id", "name"], "--id needs a table and --target"),
        (["--plot", "suspects.xyz"], "suspects.xyz must end in one of"),
        (["--out", "a.png", "--plot", "a.png"], "--out and --plot must be two files"),
        (["--out", "/nowhere/scores.csv"], "No such file or directory"),
    ],
)
def test_bad_options(args, message, capsys):
    assert main(["audit", *args]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.linspace(0, 1, 20), "must be classes (whole numbers, text, or True and False), got"),
        (np.arange(20) % 3 + 6.5, "got floats such as 6.5, which are numbers to predict"),
        (np.arange(20), "with several examples each, got 20 different values in 20 examples"),
        (np.arange(20) // 19, "each label must occur at least twice; these occur once"),
        (np.ones((20, 2)), "y must hold labels or one-hot rows"),
    ],
)
def test_targets_that_are_not_classes(y, message, tmp_path, capsys):
    path = tmp_path / "numbers.npz"
    np.savez(path, X=np.ones((20, 3)), y=y)
    assert main(["audit", "--data", str(path)]) == 2
    assert message in capsys.readouterr().err


def test_more_folds_than_examples_and_images_that_are_none(tmp_path, capsys):
    path = tmp_path / "numbers.npz"
    np.savez(path, X=np.arange(40).reshape(20, 2), y=np.arange(20) % 2)
    assert main(["audit", "--data", str(path), "--plot", str(tmp_path / "a.png")]) == 2
    assert "--plot needs images: 2 numbers per example are not a square" in capsys.readouterr().err
    assert main(["audit", "--data", str(path), "--folds", "21"]) == 2
    out, err = capsys.readouterr()
    assert "--folds must be from 2 to 20 for 20 examples, got 21" in err
    assert out == ""
