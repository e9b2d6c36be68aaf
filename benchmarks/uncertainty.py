"""Uncertainty: the Laplace posterior against laplace-torch, on the same trained network.

    pip install -e '.[peers]' laplace-torch
    python -m benchmarks uncertainty [--data mnist.npz]

A network is trained on the classes 0 to 7 of the training images, less a tenth for validation; the
test images of 0 to 7 are what it should know, those of 8 and 9 what it has never seen. Measured are
the log loss and the calibration error (15 bins) on the former, and how well the two kinds can be
told apart (area under the ROC curve): by the largest probability, and by the variance of the score
of the predicted class. All posteriors have Kronecker factors and average by the probit formula.
"""

import time
import warnings

import jax
import numpy as np
import optax
import torch
from laplace import Laplace
from sklearn.metrics import log_loss, roc_auc_score

import deepprop as dp
from benchmarks.images import in_torch, load, loader, one_hot, options
from benchmarks.report import markdown, setting, today, write
from benchmarks.training import share_of_others

KNOWN, UNKNOWN = list(range(8)), [8, 9]
HIDDEN, EPOCHS, SEEDS, MEMBERS, BINS = [256, 128], 30, 3, 5, 15
HEAD = [
    "", "log loss", "calibration error, %", "unknown, by probability", "unknown, by variance",
    "fit, s", "predict, s",
]  # fmt: skip


def train(X, Y, seed, members=None):
    """Return a trained network, or several."""

    def make(key):
        return dp.init_params(key, [len(X), *HIDDEN, len(KNOWN)])

    key = jax.random.key(seed)
    options = {"epochs": EPOCHS, "batch_size": 128, "key": jax.random.key(seed + 100)}
    if members is None:
        return dp.fit(make(key), optax.adam(1e-3), X, Y, **options).params
    params = jax.vmap(make)(jax.random.split(key, members))
    return dp.fit_ensemble(params, optax.adam(1e-3), X, Y, **options).params


def calibration_error(p, labels):
    """Return the mean distance of confidence and accuracy over bins of the confidence."""
    confidence, right = p.max(0), p.argmax(0) == labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    parts = (bins == b for b in range(BINS))
    return sum(abs(confidence[i].sum() - right[i].sum()) for i in parts) / labels.size


def ours(**options):
    """Return a contender: deepprop's posterior."""

    def fit(params, X, Y, X_val, Y_val):
        chosen = dict(options)
        if chosen.pop("validated", False):
            chosen["validation"] = X_val, Y_val
        posterior = dp.laplace(params, X, Y, **chosen)
        jax.block_until_ready(posterior.noise)
        return posterior.predict

    return fit


def theirs(subset):
    """Return a contender: laplace-torch, its prior precision by the marginal likelihood."""

    def fit(params, X, Y, X_val, Y_val):
        la = Laplace(
            in_torch(params), "classification", subset_of_weights=subset, hessian_structure="kron"
        )
        la.fit(loader(X, Y.argmax(0)))
        la.optimize_prior_precision(method="marglik")

        def predict(X):
            rows = torch.tensor(np.array(X.T))
            parts = [la._glm_predictive_distribution(part) for part in rows.split(256)]
            Z = torch.cat([part[0] for part in parts]).detach()
            v = torch.cat([torch.diagonal(part[1], dim1=1, dim2=2) for part in parts]).detach()
            p = torch.softmax(Z / torch.sqrt(1 + torch.pi / 8 * v), dim=1)
            return p.numpy().T, v.numpy().T

        return predict

    return fit


CONTENDERS = {
    "the network alone": None,
    f"{MEMBERS} networks, averaged": MEMBERS,
    "deepprop, last layer": ours(layers="last"),
    "deepprop, last layer, validation": ours(layers="last", validated=True),
    "deepprop, all layers": ours(layers="all"),
    "deepprop, all layers, validation": ours(layers="all", validated=True),
    "laplace-torch, last layer": theirs("last_layer"),
    "laplace-torch, all layers": theirs("all"),
}


def measure(contender, params, seed, data, X_unknown):
    """Return the numbers of a row: see `HEAD`."""
    (X, Y, X_val, Y_val), (X_test, labels) = data
    begin = time.perf_counter()
    if contender is None or isinstance(contender, int):
        several = (
            train(X, Y, seed, contender) if contender else jax.tree.map(lambda p: p[None], params)
        )
        each = jax.jit(jax.vmap(dp.predict, (0, None)))

        def predict(X):
            A = np.asarray(each(several, X))
            return A.mean(0), A.var(0)

        jax.block_until_ready(several)
    else:
        predict = contender(params, X, Y, X_val, Y_val)
    fitted = time.perf_counter()
    p, v = map(np.asarray, predict(X_test))
    p_unknown, v_unknown = map(np.asarray, predict(X_unknown))
    predicted = time.perf_counter()
    kind = np.repeat([0, 1], [p.shape[1], p_unknown.shape[1]])
    by_probability = -np.concatenate([p.max(0), p_unknown.max(0)])
    of_best = [
        np.take_along_axis(a, b.argmax(0)[None], 0)[0] for a, b in ((v, p), (v_unknown, p_unknown))
    ]
    variance = np.concatenate(of_best)
    auc = roc_auc_score(kind, variance) if variance.max() > 0 else np.nan
    return (
        log_loss(labels, p.T, labels=KNOWN), 100 * calibration_error(p, labels),
        roc_auc_score(kind, by_probability), auc, fitted - begin, predicted - fitted,
    )  # fmt: skip


def run(path, most):
    """Return the name of the images, and the rows of each contender."""
    images = load(path, most)
    known, unknown = images.of(KNOWN), images.of(UNKNOWN)
    rows = {name: [] for name in CONTENDERS}
    for seed in range(SEEDS):
        order = np.random.default_rng(seed).permutation(known.labels.size)
        val, rest = np.split(order, [order.size // 10])
        X, Y = known.X[:, rest], one_hot(known.labels[rest], len(KNOWN))
        data = X, Y, known.X[:, val], one_hot(known.labels[val], len(KNOWN))
        params = train(X, Y, seed)
        for name, contender in CONTENDERS.items():
            row = measure(contender, params, seed, (data, known[3:]), unknown.X_test)
            rows[name].append(row)
            print(f"{name:34}", *(f"{number:8.4f}" for number in row), flush=True)
    return images.name, rows


def report(tables, busy):
    """Return the tables in Markdown."""
    parts = []
    for name, rows in tables:
        lines = [
            [
                contender,
                *(
                    f"{median:.3g}" if not np.isnan(median) else ""
                    for median in np.median(found, axis=0)
                ),
            ]
            for contender, found in rows.items()
        ]
        parts.append(f"## {name}\n\n{markdown(HEAD, lines)}")
    body = "\n\n".join(parts)
    return f"""# Uncertainty, {today()}

{setting()}. Other programs used {busy:.0%} of the processors.

{__doc__.split(chr(10) * 2, 2)[2].strip()}

Medians of {SEEDS} seeds. The networks have {"-".join(map(str, HIDDEN))} hidden units, and were trained by
Adam for {EPOCHS} epochs. The prior precision is that of the marginal likelihood, or with "validation" that
under which the validation labels are likeliest. The times of the first seed include
compilation. The fit time of an ensemble is its training.

{body}
"""


def main():
    """Measure and write the tables."""
    args = options(__doc__).parse_args()
    warnings.simplefilter("ignore")
    others = share_of_others()
    tables = [run(path, args.examples) for path in (None, *args.data)]
    write(report(tables, others() or 0.0), "uncertainty", args.out)


if __name__ == "__main__":
    main()
