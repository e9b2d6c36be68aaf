"""Wrong labels: how many of those that were planted are found, against cleanlab, and how fast.

    pip install -e '.[peers,sklearn]' cleanlab
    python -m benchmarks labels [--data mnist.npz]

A share of the labels is replaced: by any other class ("any"), or 4 and 9 are swapped, and 3 and 8
("alike"). The table has the share of replaced labels among the n most suspicious images, where n is
how many were replaced (precision, which then equals recall). cleanlab ranks by out-of-sample
probabilities of scikit-learn's MLP with its defaults, in five folds; its two scores are in the
table. Below them are rankings by a single network trained on all labels: simpler scores that need
no folds. The scores of `dp.audit` are probabilities: their sum estimates how many labels are wrong,
and one row has that sum divided by the number replaced. The seconds are for the first kind and
share of noise, in a new process, imports included: what a person would wait.
"""

import subprocess
import sys
import time
import warnings

import numpy as np

from benchmarks.images import load, one_hot, options
from benchmarks.report import markdown, setting, today, write
from benchmarks.training import share_of_others

PAIRS = {4: 9, 9: 4, 3: 8, 8: 3}
NOISE = [(kind, share) for kind in ("any", "alike") for share in (0.02, 0.05, 0.1)]
SEEDS = {True: 3, False: 1}  # of the small set, and of a file


def planted(labels, kind, share, seed):
    """Return the labels with some replaced, and which."""
    random, wrong = np.random.default_rng(seed), labels.copy()
    among = np.arange(labels.size) if kind == "any" else np.flatnonzero(np.isin(labels, [*PAIRS]))
    chosen = random.choice(among, round(share * labels.size), replace=False)
    for i in chosen:
        y = int(labels[i])
        wrong[i] = PAIRS[y] if kind == "alike" else (y + random.integers(1, 10)) % 10
    return wrong, wrong != labels


def audited(repeats):
    """Return a contender: `dp.audit`."""

    def rank(X, labels, seed):
        import jax

        import deepprop as dp

        found = dp.audit(X, one_hot(labels), key=jax.random.key(seed), repeats=repeats)
        score = np.empty(labels.size)
        score[found.example] = found.score
        return {"": score}

    return rank


def cleanlab(X, labels, seed):
    """Return cleanlab's two scores, from scikit-learn's MLP."""
    from cleanlab.rank import get_label_quality_scores
    from sklearn.model_selection import cross_val_predict
    from sklearn.neural_network import MLPClassifier

    model = MLPClassifier(random_state=seed)
    p = cross_val_predict(model, X.T, labels, cv=5, method="predict_proba")
    return {
        f", {method.replace('_', ' ')}": -get_label_quality_scores(labels, p, method=method)
        for method in ("self_confidence", "normalized_margin")
    }


def in_sample(X, labels, seed):
    """Return scores of one network that has seen all labels."""
    import jax
    import jax.numpy as jnp
    import optax

    import deepprop as dp

    epochs = max(5, -(-1_000 // -(-labels.size // 128)))
    params = dp.init_params(jax.random.key(seed), [len(X), 128, 10])
    params = dp.fit(
        params, optax.adam(1e-3), X, one_hot(labels), epochs=epochs, batch_size=128,
        key=jax.random.key(seed + 1),
    ).params  # fmt: skip
    Y, curvature = one_hot(labels), dp.ekfac(params, X)
    _, cache = dp.forward(params, X)
    dZ = dp.error_signals(cache, Y)
    pieces = np.array_split(np.arange(labels.size), max(1, labels.size // 200))
    own = [
        np.diag(dp.influence(params, X[:, i], Y[:, i], X[:, i], Y[:, i], curvature=curvature))
        for i in pieces
    ]
    return {
        ": loss": np.asarray(params[-1].activation.loss(cache.Z[-1], jnp.asarray(Y))),
        ": norm of the gradient": np.asarray(dp.per_example_norms(cache, dZ)),
        ": influence on itself": np.concatenate(own),
    }


CONTENDERS = {
    "dp.audit": audited(2),
    "dp.audit, repeats=1": audited(1),
    "dp.audit, repeats=4": audited(4),
    "cleanlab": cleanlab,
    "one network": in_sample,
}


def precision(score, bad):
    """Return the share of wrong labels among as many of the highest scores."""
    return bad[np.argsort(-score, kind="stable")[: bad.sum()]].mean()


def seconds(name, path, most):
    """Return how long a new process takes for one ranking, with its imports."""
    code = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "from benchmarks.labels import CONTENDERS, NOISE, load, planted\n"
        f"one = load({path!r}, {most})\n"
        "labels, _ = planted(one.labels, *NOISE[0], 0)\n"
        f"CONTENDERS[{name!r}](one.X, labels, 0)\n"
    )
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return time.perf_counter() - begin


def run(path, most, without):
    """Return the name of the images and the rows of the table."""
    images = load(path, most)
    chosen = {name: rank for name, rank in CONTENDERS.items() if name not in without}
    times = {name: seconds(name, path, most) for name in chosen}  # first: nothing else should run
    print(images.name, times, flush=True)
    found = {}
    for name, rank in chosen.items():
        for kind, share in NOISE:
            for seed in range(SEEDS[path is None]):
                labels, bad = planted(images.labels, kind, share, seed)
                for what, score in rank(images.X, labels, seed).items():
                    figures = {what: precision(score, bad)}
                    if name == "dp.audit":
                        figures[": sum of the scores / number replaced"] = score.sum() / bad.sum()
                    for figure, value in figures.items():
                        row = found.setdefault((name, figure), {})
                        row.setdefault((kind, share), []).append(value)
            print(images.name, name, kind, share, {w: np.mean(r[kind, share]).round(3) for (n, w), r in found.items() if n == name}, flush=True)  # fmt: skip
    rows = [
        [name + what, *(f"{np.mean(values):.3f}" for values in row.values()), f"{times[name]:.1f}"]
        for (name, what), row in found.items()
    ]
    return f"{images.name}, {images.labels.size:,} images", rows


def report(tables, busy):
    """Return the tables in Markdown."""
    head = ["", *(f"{kind}, {share:.0%}" for kind, share in NOISE), "seconds"]
    body = "\n\n".join(f"## {name}\n\n{markdown(head, rows)}" for name, rows in tables)
    return f"""# Wrong labels, {today()}

{setting()}. Other programs used {busy:.0%} of the processors.

{__doc__.split(chr(10) * 2, 2)[2].strip()}

Means over {SEEDS[True]} seeds for the digits, and one for a file.

{body}
"""


def main():
    """Measure and write the tables."""
    parser = options(__doc__)
    parser.add_argument("--without", nargs="*", default=[], metavar="CONTENDER")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    others = share_of_others()
    tables = [run(path, args.examples, args.without) for path in (None, *args.data)]
    write(report(tables, others() or 0.0), "labels", args.out)


if __name__ == "__main__":
    main()
