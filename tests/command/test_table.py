"""`deepprop train`, `predict` and `export` with tables."""

import csv
import re
from argparse import Namespace

import numpy as np
import pandas
import pytest
from sklearn import metrics

import deepprop as dp
from deepprop.command.pictures import calibration
from deepprop.command.scores import class_scores, confusion, number_scores
from deepprop.command.table_data import divided, load_table

pytestmark = pytest.mark.usefixtures("optax_types")
QUICK = ["--hidden", "16", "--epochs", "40", "--learning-rate", "0.02", "--no-check"]
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def table():
    m = 240
    age, city = RNG.integers(18, 80, m).astype(float), RNG.choice(["Rome", "Oslo", "Bonn"], m)
    yes = age + 20 * (city == "Rome") > 55
    price = 1000 * age + 20_000 * (city == "Oslo") + 300_000
    frame = pandas.DataFrame({"id": [f"p{i}" for i in range(m)], "age": age, "city": city})
    frame["bought"], frame["price"] = np.where(yes, "yes", "no"), price
    frame.loc[::9, "age"] = np.nan
    frame.loc[5::17, "city"] = None
    return frame


@pytest.fixture
def files(table, tmp_path):
    table[:200].to_csv(tmp_path / "train.csv", index=False)
    table[200:].to_csv(tmp_path / "new.csv", index=False)
    return tmp_path


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_classes(run, files, table):
    train = ["--data", files / "train.csv", "--target", "bought", "--ignore", "price"]
    status, out, err = run("train", *train, *QUICK, "--save", files / "m.npz")
    assert (status, err) == (0, "")
    assert "train.csv: 160 to train on, 40 held out, 6 inputs, 2 classes" in out
    assert "numbers    age (--categories changes it)" in out
    assert "categories city (--numbers changes it)" in out
    assert "missing    age 23, city 12: imputed; an extra input marks them" in out
    assert "left out   id (text, 200 different values)" in out
    assert "targets    bought: 2 classes, as it holds text" in out
    scores = re.search(r"accuracy ([\d.]+) %, balanced accuracy ([\d.]+) %, log loss ([\d.]+)", out)
    assert float(scores[1]) > 80
    counts = re.findall(r"^ +(?:no|yes) +(\d+) +(\d+)$", out, re.M)
    counts = np.array(counts, int)
    assert counts.sum() == 40
    assert f"{100 * counts.trace() / 40:.2f}" == scores[1]

    new = ["--data", files / "new.csv", "--out", files / "out.csv"]
    status, out, _ = run("predict", files / "m.npz", *new, "--id", "id")
    head, *lines = read_csv(files / "out.csv")
    assert head == ["id", "prediction", "probability of no", "probability of yes"]
    assert [line[0] for line in lines] == table["id"][200:].tolist()
    p = np.array([line[2:] for line in lines], float)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-6)
    assert [line[1] for line in lines] == np.array(["no", "yes"])[p.argmax(axis=1)].tolist()
    right = np.mean([line[1] == y for line, y in zip(lines, table["bought"][200:], strict=True)])
    assert f"accuracy {100 * right:.2f} %" in out


def test_numbers_are_in_their_unit(run, files, table):
    train = ["--data", files / "train.csv", "--target", "price", "--ignore", "bought"]
    status, out, _ = run("train", *train, *QUICK, "--save", files / "m.npz")
    assert status == 0
    assert "price: numbers, 1 per example, as it holds floats" in out
    number = r"([\d.e+]+)"
    result = re.search(rf"rmse {number}, R2 {number}, mean absolute error {number} on 40", out)
    assert result, out
    assert float(result[2]) > 0.5
    last = re.findall(r"^ +40 .* (\S+)$", out, re.M)
    assert float(last[0]) == pytest.approx(float(result[1]), rel=1e-3)  # the metric of the epochs

    new = ["--data", files / "new.csv", "--out", files / "out.csv"]
    assert run("predict", files / "m.npz", *new)[0] == 0
    head, *lines = read_csv(files / "out.csv")
    assert head == ["row", "prediction"]
    assert [line[0] for line in lines] == [str(i) for i in range(1, 41)]
    found, price = np.array([line[1] for line in lines], float), table["price"][200:].to_numpy()
    assert 1 - np.square(found - price).sum() / np.square(price - price.mean()).sum() > 0.5
    extra = dp.load_extra(files / "m.npz")
    assert extra["table_columns"].tolist() == ["age", "city"]


def test_new_rows_may_lack_values_have_other_levels_and_more_columns(run, files, table):
    train = ["--data", files / "train.csv", "--target", "bought", "--ignore", "price"]
    assert run("train", *train, *QUICK, "--save", files / "m.npz")[0] == 0
    new = pandas.DataFrame({"more": [1, 2], "city": ["Wien", None], "age": [None, 30]})
    new.to_csv(files / "new.csv", index=False)
    status, out, _ = run("predict", files / "m.npz", "--data", files / "new.csv")
    assert status == 0
    assert "2 predictions" in out
    assert "accuracy" not in out
    new.drop(columns="city").to_csv(files / "new.csv", index=False)
    status, _, err = run("predict", files / "m.npz", "--data", files / "new.csv")
    assert status == 2
    assert "must have the columns city, too, which are inputs" in err


def test_predictions_say_what_was_made_up_and_keep_ids_as_they_are(run, files):
    train = ["--data", files / "train.csv", "--target", "bought", "--ignore", "price"]
    assert run("train", *train, *QUICK, "--save", files / "m.npz")[0] == 0
    (files / "new.csv").write_text("zip;age;city\n01234;40,5;Rome\n00007;a;Wien\n")
    new = ["--data", files / "new.csv", "--id", "zip", "--decimal", ",", "--out", files / "out.csv"]
    status, out, _ = run("predict", files / "m.npz", *new)
    assert status == 0
    assert (
        "no number  age 1, text such as 'a': imputed\nnot seen   city 'Wien' in training\n2 pred"
        in out
    )
    assert [line[0] for line in read_csv(files / "out.csv")] == ["zip", "01234", "00007"]


def test_text_among_numbers_is_counted_as_missing(run, files):
    (files / "t.csv").write_text(
        "a,b,y\n" + "".join(f"{i % 9},{i if i % 5 else '-'},{i % 2}\n" for i in range(60))
    )
    options = ["--target", "y", "--epochs", "1", "--hidden", "4", "--no-check"]
    _, out, _ = run("train", "--data", files / "t.csv", *options)
    assert "missing    b 12: imputed" in out


@pytest.mark.thorough
def test_the_metric_of_a_search_is_in_the_targets_unit(run, files):
    options = ["--data", files / "train.csv", "--target", "price", "--hidden", "8", "--epochs", "3"]
    _, out, _ = run("train", *options, "--search", "2", "--no-check")
    rmse = re.findall(r"^ +[\d.e-]+ +[\d.e-]+ +\d +[\d.]+ +([\d.e+]+)$", out, re.M)
    assert len(rmse) == 2
    assert all(float(value) > 1000 for value in rmse)


@pytest.mark.thorough
def test_parquet_and_archives_of_columns_train_alike(run, files, table):
    table[:200].drop(columns="id").to_csv(files / "t.csv", index=False)
    table[:200].drop(columns="id").to_parquet(files / "t.parquet")
    known = table[:200].drop(columns="id").dropna()
    np.savez(
        files / "t.npz",
        **{n: known[n].to_numpy(str if known[n].dtype.kind not in "f" else float) for n in known},
    )
    options = ["--target", "bought", "--hidden", "4", "--epochs", "2", "--no-check"]
    ends = []
    for name in ("t.csv", "t.parquet"):
        status, out, _ = run("train", "--data", files / name, *options)
        assert status == 0
        ends.append(re.sub(r", after.*", "", out.split("training   ")[1]))
    assert ends[0] == ends[1]
    status, out, _ = run("train", "--data", files / "t.npz", *options)
    assert status == 0
    assert "numbers    age, price" in out


@pytest.mark.thorough
def test_whole_numbers_of_many_values_are_numbers(run, files):
    frame = pandas.DataFrame({"x": RNG.normal(size=100), "few": np.arange(100) % 5})
    frame["many"], frame["lacks"] = np.arange(100) % 40, [None, *range(99)]
    frame.to_csv(files / "t.csv", index=False)
    for target, text in (
        ("few", "few: 5 classes, as it holds whole numbers (--output identity for numbers)"),
        ("many", "many: numbers, 1 per example, as it holds 40 different whole numbers (--output"),
        ("lacks", "dropped    1 row without lacks"),
    ):
        options = ["--target", target, "--epochs", "1", "--hidden", "4", "--no-check"]
        status, out, err = run("train", "--data", files / "t.csv", *options)
        assert (status, err) == (0, "")
        assert text in out


def test_the_preparation_is_of_the_training_rows_alone(run, files, table):
    train = ["--data", files / "train.csv", "--target", "bought", "--ignore", "price"]
    options = ["--epochs", "1", "--hidden", "4", "--no-check", "--seed", "5"]
    assert run("train", *train, *options, "--save", files / "m.npz")[0] == 0
    _, rows = divided(200, table["bought"][:200].to_numpy(), 0.2, 5)
    age = table["age"][:200].iloc[rows]
    extra = dp.load_extra(files / "m.npz")
    assert extra["table_fill"][0] == age.median() != table["age"][:200].median()
    np.testing.assert_allclose(extra["shift"][0], age.fillna(age.median()).mean())


def test_the_unit_of_a_target_is_of_the_training_rows_alone(files, table):
    args = Namespace(
        data=str(files / "train.csv"), target="price", categories=[], numbers=[], ignore=["bought"],
        held_out=0.2, seed=5, decimal=".",
    )  # fmt: skip
    unit = load_table(args, None).unit
    _, rows = divided(200, None, 0.2, 5)
    price = table["price"].to_numpy()[rows]
    np.testing.assert_allclose([unit.shift[0], unit.scale[0]], [price.mean(), price.std()])


def test_a_search_takes_the_best_epoch(run, files):
    options = [
        "--data",
        files / "train.csv",
        "--target",
        "bought",
        "--hidden",
        "32",
        "--epochs",
        "10",
    ]
    _, out, _ = run("train", *options, "--search", "1", "--learning-rate", "0.3", "--no-check")
    costs = {
        int(epoch): float(cost)
        for epoch, cost in re.findall(r"^ +(\d+) +[\d.]+ +([\d.]+)$", out, re.M)
    }
    epoch, cost = re.search(r"^ +0\.3 +0\.0001 +(\d+) +([\d.]+)", out, re.M).groups()
    assert len(costs) == 10
    assert min(costs, key=costs.get) == int(epoch) < 10
    assert costs[int(epoch)] == float(cost)


def test_a_search_reports_its_settings_and_keeps_the_best(run, files):
    options = [
        "--data",
        files / "train.csv",
        "--target",
        "bought",
        "--hidden",
        "8",
        "--epochs",
        "6",
    ]
    status, out, err = run("train", *options, "--search", "12", "--save", files / "m.npz")
    assert (status, err) == (0, "")
    assert "search     12 settings, by their lowest validation cost" in out
    rows = re.findall(r"^ +([\d.e-]+) +([\d.e-]+) +(\d) +([\d.]+) +([\d.]+) %$", out, re.M)
    costs = [float(row[3]) for row in rows]
    assert len(rows) == 10
    assert costs == sorted(costs)
    assert "and 2 more" in out
    assert "parameters agree with central differences" in out
    assert run("predict", files / "m.npz", "--data", files / "new.csv")[0] == 0


@pytest.mark.thorough
def test_a_search_starts_with_the_default(run, files):
    options = [
        "--data",
        files / "train.csv",
        "--target",
        "bought",
        "--hidden",
        "8",
        "--epochs",
        "3",
    ]
    _, out, _ = run("train", *options, "--search", "1", "--optimizer", "sgd", "--no-check")
    cost, accuracy = re.search(r"^ +0\.001 +\d +([\d.]+) +([\d.]+) %$", out, re.M).groups()
    _, out, _ = run("train", *options, "--optimizer", "sgd", "--no-check", "--patience", "3")
    assert re.search(rf"^ +3 +[\d.]+ +{cost} +{accuracy} %$", out, re.M), out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "train.csv"], "--target must name the column to predict: one of id, age, city"),
        (["--data", "train.csv", "--target", "buys"], "--target 'buys' must be a column"),
        (["--target", "bought"], "--target needs --data, a table"),
        (["--numbers", "age"], "--numbers needs a table and --target"),
        (["--data", "train.csv", "--target", "bought", "--numbers", "size"], "'size' must be a column"),
        (["--data", "train.csv", "--target", "id"], "holds text with 200 different values in 200 rows"),
        (["--data", "none.csv", "--target", "y"], "No such file or directory: 'none.csv'"),
        (["--data", "train.csv", "--target", "bought", "--held-out", "1"], "--held-out must be a share"),
        (["--search", "3", "--optimizer", "kfac"], "--search needs an --optimizer"),
        (["--search", "3", "--checkpoint", "c"], "--checkpoint must be left out with --search"),
        (["--search", "3", "--patience", "2"], "--patience must be left out"),
        (["--search", "3", "--diagnose"], "--diagnose must be left out"),
    ],
)  # fmt: skip
@pytest.mark.ordinary(99)
def test_bad_options_are_named(run, files, monkeypatch, options, message):
    monkeypatch.chdir(files)
    status, _, err = run("train", *options, "--epochs", "1", "--no-check")
    assert status == 2
    assert re.search(message, err), err
    assert err.count("\n") == 1


@pytest.mark.thorough
def test_a_model_and_its_data_must_be_of_one_kind(run, files):
    table = ["--data", files / "train.csv", "--target", "bought"]
    assert (
        run(
            "train",
            *table,
            "--hidden",
            "4",
            "--epochs",
            "1",
            "--no-check",
            "--save",
            files / "t.npz",
        )[0]
        == 0
    )
    assert (
        run("train", "--hidden", "4", "--epochs", "1", "--no-check", "--save", files / "d.npz")[0]
        == 0
    )
    assert "must name one" in run("predict", files / "t.npz")[2]
    assert "was not trained on a table" in run("predict", files / "d.npz", *table[:2])[2]
    status, out, _ = run("export", files / "t.npz", "--out", files / "t.jax")
    assert status == 0
    assert (
        "inputs     of a prepared table: age, age missing, city=Bonn, city=Oslo, city=Rome" in out
    )


@pytest.mark.thorough
def test_a_damaged_preparation_is_named(run, files):
    table = ["--data", files / "train.csv", "--target", "bought"]
    assert (
        run(
            "train",
            *table,
            "--hidden",
            "4",
            "--epochs",
            "1",
            "--no-check",
            "--save",
            files / "t.npz",
        )[0]
        == 0
    )
    extra = dp.load_extra(files / "t.npz")
    extra["table_fill"] = extra["table_fill"][:-1]
    shift, scale = extra.pop("shift"), extra.pop("scale")
    dp.save(files / "t.npz", dp.load(files / "t.npz"), scaling=(shift, scale), **extra)
    status, _, err = run("predict", files / "t.npz", "--data", files / "new.csv")
    assert status == 2
    assert "t.npz: the preparation of its table is damaged" in err


@pytest.mark.thorough
def test_pictures(run, files):
    options = ["--hidden", "4", "--epochs", "2", "--no-check", "--plot"]
    for target, picture in (("bought", "a.png"), ("price", "b.pdf")):
        table = ["--data", files / "train.csv", "--target", target]
        assert run("train", *table, *options, files / picture)[0] == 0
        assert (files / picture).stat().st_size > 10_000


def test_a_search_keeps_what_was_trained_before_all_diverged(run, files):
    options = ["--data", files / "train.csv", "--target", "price", "--hidden", "4", "--no-check"]
    options += ["--activation", "identity", "--optimizer", "sgd", "--epochs", "60", "--search", "1"]
    status, out, err = run("train", *options, "--learning-rate", "1.1", "--save", files / "m.npz")
    if status == 0:
        assert "search     1 settings" in out
        assert run("predict", files / "m.npz", "--data", files / "new.csv")[0] == 0
    status, out, err = run("train", *options, "--learning-rate", "1e30")
    assert status == 1
    assert "the costs of all 1 networks are not finite in epoch 1: try a smaller" in err


@pytest.mark.thorough
def test_large_whole_numbers_are_classes_of_their_own(run, files):
    rows = "".join(f"{i % 7},{2**53 + i % 3}\n" for i in range(60))
    (files / "t.csv").write_text("x,y\n" + rows)
    _, out, _ = run(
        "train", "--data", files / "t.csv", "--target", "y", "--epochs", "1", "--no-check"
    )
    assert "y: 3 classes" in out


def test_a_target_that_float32_does_not_tell_apart_is_refused(run, files):
    rows = "".join(f"{i % 7},{1e9 + i % 9 / 8}\n" for i in range(60))
    (files / "t.csv").write_text("x,y\n" + rows)
    status, _, err = run("train", "--data", files / "t.csv", "--target", "y", "--epochs", "1")
    assert status == 2
    assert "the target 'y' must vary more: its mean is 1e+09" in err


@pytest.mark.thorough
def test_labels_that_do_not_fit_cost_only_the_score(run, files, table):
    train = ["--data", files / "train.csv", "--target", "bought", "--ignore", "price"]
    assert run("train", *train, *QUICK, "--save", files / "m.npz")[0] == 0
    table[200:].assign(bought="perhaps").to_csv(files / "new.csv", index=False)
    status, out, _ = run("predict", files / "m.npz", "--data", files / "new.csv")
    assert status == 0
    assert "no score   y holds the label perhaps" in out
    assert "40 predictions" in out


# --- parts --------------------------------------------------------------------------------------


def test_scores_are_scikit_learns():
    Y = np.eye(3)[RNG.integers(3, size=50)].T
    A = RNG.dirichlet(np.ones(3), 50).T
    labels, found = Y.argmax(0), A.argmax(0)
    expected = {
        "accuracy": metrics.accuracy_score(labels, found),
        "balanced accuracy": metrics.balanced_accuracy_score(labels, found),
        "log loss": metrics.log_loss(labels, A.T),
    }
    assert class_scores(A, Y) == pytest.approx(expected, rel=1e-6)
    np.testing.assert_array_equal(confusion(A, Y), metrics.confusion_matrix(labels, found))
    y, a = RNG.normal(size=(1, 50)), RNG.normal(size=(1, 50))
    expected = {
        "rmse": metrics.root_mean_squared_error(y[0], a[0]),
        "R2": metrics.r2_score(y[0], a[0]),
        "mean absolute error": metrics.mean_absolute_error(y[0], a[0]),
    }
    assert number_scores(a, y) == pytest.approx(expected)


def test_a_calibration():
    A = np.array([[0.9, 0.95, 0.55, 0.6], [0.1, 0.05, 0.45, 0.4]])
    Y = np.array([[1, 0, 1, 1], [0, 1, 0, 0]])
    mean, share, counts = calibration(A, Y)
    np.testing.assert_allclose(mean, [0.55, 0.6, 0.925])
    assert share.tolist() == [1, 1, 0.5]
    assert counts.tolist() == [1, 1, 2]


@pytest.mark.parametrize(
    ("m", "share"), [(100, 0.2), (103, 0.25), (7, 0.5), (1000, 0.1), (25, 0.1), (5, 0.8)]
)
def test_the_held_out_rows_have_each_class_in_its_share(m, share):
    labels = np.where(RNG.random(m) < 0.1, "rare", RNG.choice(["a", "b"], m))
    test, train = divided(m, labels, share, 0)
    assert sorted([*test, *train]) == list(range(m))
    assert len(test) == round(m * share)
    for label in np.unique(labels):
        due = len(test) / m * (labels == label).sum()
        assert abs((labels[test] == label).sum() - due) <= 1
    other, _ = divided(m, labels, share, 1)
    assert m < 20 or set(test) != set(other)
