"""Which labels are probably wrong: the labels against predictions of networks that never saw them.

The examples are divided into folds, and for each fold a network is trained on the others; all of
them are one program. So every example has a prediction p(k) of a network that has not seen its
label. A low p(label) is suspicious, but it is often the network that is wrong.

What helps is that wrong labels have patterns: people confuse 4 and 9 more often than 4 and 1. Let
T[k, y] be the probability that an example of class k is labelled y. Given T, the probability that
an example labelled y is of class k is, by Bayes' rule,

    q(k) = p(k) T[k, y] / sum_h p(h) T[h, y]

and given q, T follows by counting. The two steps are repeated (expectation-maximisation, as Dawid
and Skene 1979 do for several labels per example). The score is 1 - q(label). As a prior, each class
gets pseudo-counts of wrong labels, 1 % of its number of labels, spread evenly over the other
classes. Where the data says nothing else, the ranking is close to that by p(label).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from deepprop._arguments import check_params, output_of
from deepprop._checks import ONE_HOT, check_finite, check_key, real_array, whole_number
from deepprop.layers import Layer, Params
from deepprop.network import init_params, predict
from deepprop.training.ensemble import fit_ensemble
from deepprop.training.loop import Fit, TrainingError

STEPS = 1_000  # of each network, if the epochs are not given
LEAST = 5  # epochs
WRONG = 0.1  # share of wrong labels from which the estimate starts
REPEATED = 30  # iterations of the estimate
PRIOR = 0.01  # share of wrong labels that is added to the counts of each class
SMALLEST = 1e-9  # probability
SHOWN = 10  # examples in the text

Network = Sequence[int] | Callable[[Array], Params]


@dataclass(frozen=True, eq=False)
class Audit:
    """The examples, the most suspicious labels first.

    Attributes:
        example: (m,), the index of each example.
        label: (m,), the class it is labelled as, as the index of its row of Y.
        suggested: (m,), its most probable class other than the label.
        score: (m,), the probability that the label is wrong. Their sum estimates how many are. It
            is usually too low, because the networks also learn from wrong labels, and too high
            where they know little, which the text of an `Audit` says.
        probabilities: (n_L, m), q(k) of each example, in the order of X.
        predictions: (n_L, m), p(k) of each example, by networks that have not seen its label.
        confusion: (n_L, n_L), T[k, y], the estimated probability that class k is labelled y.
    """

    example: np.ndarray
    label: np.ndarray
    suggested: np.ndarray
    score: np.ndarray
    probabilities: np.ndarray
    predictions: np.ndarray
    confusion: np.ndarray

    def __str__(self) -> str:
        """Return the first examples as a table, and how many labels are probably wrong."""
        rows = [" example  label  suggested  score"]
        columns = zip(self.example, self.label, self.suggested, self.score, strict=True)
        for (i, y, k, score), _ in zip(columns, range(SHOWN), strict=False):
            rows.append(f"{i:8} {y:6} {k:10} {score:6.3f}")
        wrong = self.score.sum()
        rows.append(f"about {wrong:,.0f} of {len(self.score):,} labels are probably wrong")
        return "\n".join([*rows, f"the networks {foresight(self)}"])


def audit(
    X: ArrayLike,
    Y: ArrayLike,
    *,
    key: Array,
    network: Network = (128,),
    folds: int = 5,
    repeats: int = 2,
    epochs: int | None = None,
    batch_size: int | None = None,
    optimizer: optax.GradientTransformation | None = None,
) -> Audit:
    """Find labels that are probably wrong, using networks that were not trained on them.

    >>> import jax, optax, deepprop as dp, jax.numpy as jnp
    >>> X = jax.random.normal(jax.random.key(0), (2, 300))
    >>> labels = (X[0] > X[1]).astype(int)
    >>> labels = labels.at[7].set(1 - labels[7])  # one is wrong
    >>> found = dp.audit(X, jax.nn.one_hot(labels, 2, axis=0), key=jax.random.key(1),
    ...                  optimizer=optax.sgd(0.3))
    >>> int(found.example[0]), bool(found.score[0] > 0.9)
    (7, True)

    Args:
        X: (n_0, m), one example per column, of size about 1: scale or standardise it.
        Y: (n_L, m), one-hot labels; or (1, m) of 0 and 1.
        key: a JAX random key, for the folds, the initial parameters and the order of the examples.
        network: the units of the hidden layers; or a function of a key that returns the layers, for
            anything else. Their output must be softmax.
        folds: the number of parts to divide the examples into, at least 2.
        repeats: how many times to do so, with new folds and initial parameters; the predictions
            are averaged.
        epochs: the number of passes over the examples; None takes as many as make 1,000 steps, and
            at least 5.
        batch_size: examples per step; None takes 128, or a quarter of the examples if they are few.
        optimizer: an optax transformation; None takes Adam with a learning rate of 0.001.

    Returns:
        An `Audit`.

    Raises:
        ValueError: Y is not one-hot, a class has a single example, a shape does not fit, X is not
            finite, or there are more folds than examples.
        TypeError: an array is not real numbers, or `key` is not a random key.
        TrainingError: the training diverged.

    Source:
        Northcutt, Jiang and Chuang 2021, Confident Learning, arXiv:1911.00068, for predictions by
        networks that have not seen an example; Dawid and Skene 1979, Maximum Likelihood Estimation
        of Observer Error-Rates, Applied Statistics 28.
    """
    check_key(key)
    X, labels, n_L = _examples(X, Y)
    m = X.shape[1]
    folds = whole_number("folds", folds, m)
    if folds < 2:
        raise ValueError(f"folds must be at least 2, got {folds}")
    repeats = whole_number("repeats", repeats)
    size = (
        min(128, max(1, m // 4)) if batch_size is None else whole_number("batch_size", batch_size)
    )
    if epochs is None:
        epochs = max(LEAST, math.ceil(STEPS / math.ceil(m / size)))
    of_folds, of_networks = jax.random.split(key)
    held_out = _held_out(of_folds, labels, folds, repeats)
    make = _maker(network, X.shape[0], n_L)
    made, order = jax.random.split(of_networks, (2, len(held_out)))
    fit = fit_ensemble(
        jax.vmap(make)(made), ADAM if optimizer is None else optimizer,
        X, np.eye(n_L, dtype=np.float32)[:, labels], epochs=epochs, batch_size=size,
        key=order, weights=(~held_out).astype(np.float32),
    )  # fmt: skip
    p = _predictions(fit, X, held_out)
    q, T = by_confusion(p, labels)
    score = 1 - q[labels, np.arange(m)]
    order = np.argsort(-score, kind="stable")
    suggested = np.where(np.eye(n_L, dtype=bool)[:, labels], -1, q).argmax(axis=0)
    return Audit(order, labels[order], suggested[order], score[order], q, p, T)


def foresight(found: Audit) -> str:
    """Return in words how many labels the networks predict, and whether that is more than chance.

    Networks that know nothing also disagree with labels. They could predict the most common label
    for every example; a share of right predictions two standard errors above that is not chance.
    """
    m = len(found.label)
    right = float((found.predictions.argmax(axis=0)[found.example] == found.label).mean())
    common = float(np.bincount(found.label).max() / m)
    text = f"predict {right:.1%} of the labels; {common:.1%} are the most common one"
    if right > common + 2 * math.sqrt(common * (1 - common) / m):
        return text
    return f"{text}: they know too little to judge (are the inputs scaled? do they say enough?)"


def by_confusion(p: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return q (n_L, m), each example's classes given its label, and T: see the top of the file.

    Args:
        p: (n_L, m), the predictions of networks that have not seen the labels.
        labels: (m,), from 0 to n_L - 1.
    """
    n_L = len(p)
    p = np.clip(p.astype(np.float64), SMALLEST, None)
    others = ~np.eye(n_L, dtype=bool)
    T = np.where(others, WRONG / max(n_L - 1, 1), 1 - WRONG)
    of_label = np.eye(n_L)[labels]  # (m, n_L)
    prior = np.where(others, PRIOR / max(n_L - 1, 1) * of_label.sum(axis=0)[:, None], 0)
    for _ in range(REPEATED):
        counts = _given(p, T, labels) @ of_label + prior
        T = counts / counts.sum(axis=1, keepdims=True)
    return _given(p, T, labels), T


def _given(p: np.ndarray, T: np.ndarray, labels: np.ndarray) -> np.ndarray:
    q = p * T[:, labels]
    return np.asarray(q / q.sum(axis=0))


def _examples(X: ArrayLike, Y: ArrayLike) -> tuple[np.ndarray, np.ndarray, int]:
    """Return X, the labels (m,) and the number of classes.

    Raises:
        ValueError, TypeError: as `audit`.
    """
    X = np.asarray(real_array("X", X, jnp.float32))
    if X.ndim != 2 or 0 in X.shape:
        raise ValueError(f"X must have shape (n_0, m), one example per column, got shape {X.shape}")
    check_finite("X", X)
    labels, n_L = _labels(np.asarray(real_array("Y", Y, jnp.float32)), X.shape)
    return X, labels, n_L


def _labels(Y: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, int]:
    """Return the labels (m,) and the number of classes.

    Raises:
        ValueError: Y is not one-hot, does not fit the shape of X, or has a class once.
    """
    n_0, m = shape  # of X
    if Y.ndim != 2 or Y.shape[1] != m:
        hint = ONE_HOT if Y.ndim == 1 else ""
        if Y.ndim == 2 and Y.shape[1] == n_0:
            hint = "; the examples in X seem to be rows: pass X.T"
        raise ValueError(
            f"Y must have shape (n_L, {m}), one example per column, got shape {Y.shape}{hint}"
        )
    binary = np.isin(Y, (0, 1)).all()
    ones = np.concatenate([1 - Y, Y]) if len(Y) == 1 else Y
    if not binary or not (ones.sum(axis=0) == 1).all():
        hint = ONE_HOT if len(Y) == 1 and (np.round(Y) == Y).all() else ""
        if binary and (Y.sum(axis=1) == 1).all():
            hint = "; the examples seem to be rows: pass X.T and Y.T"
        raise ValueError(f"Y must be one-hot, one example per column, got shape {Y.shape}{hint}")
    alone = np.flatnonzero(ones.sum(axis=1) == 1)
    if alone.size:
        raise ValueError(
            "Y must have at least two examples of each class, as one is judged by networks that"
            f" have not seen it; got one of class {', '.join(map(str, alone))}"
        )
    return ones.argmax(axis=0), len(ones)


def _held_out(key: Array, labels: np.ndarray, folds: int, repeats: int) -> np.ndarray:
    """Return which examples each of repeats * folds networks does not see, (networks, m)."""
    m, parts = len(labels), []
    random = np.random.default_rng(np.asarray(jax.random.bits(key, (4,), jnp.uint32)))
    for _ in range(repeats):
        order = random.permutation(m)
        order = order[np.argsort(labels[order], kind="stable")]  # classes spread over the folds
        fold = np.empty(m, int)
        fold[order] = np.arange(m) % folds
        parts.append(fold == np.arange(folds)[:, None])
    return np.concatenate(parts)


def _maker(network: Network, n_0: int, n_L: int) -> Callable[[Array], Params]:
    """Return the function that makes a network from a key.

    Raises:
        ValueError: it would make one with another output than softmax, or of other sizes.
        TypeError: it is neither sizes nor a function.
    """
    if not callable(network):
        if isinstance(network, str) or not hasattr(network, "__iter__"):
            raise TypeError(f"network must be the units of the hidden layers, got {network!r}")
        hidden = list(network)
        if any(isinstance(part, Layer) for part in hidden):
            raise TypeError(
                "network must be the units of the hidden layers, or a function of a key that"
                " returns layers, as each network needs layers of its own; got layers"
            )
        return lambda key: init_params(key, [n_0, *hidden, n_L])
    made = jax.eval_shape(network, jax.random.key(0))
    check_params(made)
    ends, name = (made[0].W.shape[-1], made[-1].W.shape[-2]), output_of(made).name
    if ends != (n_0, n_L) or name.partition("+")[0] != "softmax":
        raise ValueError(
            f"network must have {n_0} inputs and {n_L} outputs with softmax, got"
            f" {ends[0]} and {ends[1]} with {name}"
        )
    return network


def _predictions(fit: Fit, X: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """Return the mean prediction of the networks that have not seen an example, (n_L, m).

    Raises:
        TrainingError: a network has diverged, so that some examples have no judge.
    """
    most = held_out.sum(axis=1).max()  # one shape for all networks, for which predict is compiled
    n_L, m = fit.params[-1].W.shape[-2], X.shape[1]
    total = np.zeros((n_L, m))
    for k, unseen in enumerate(map(np.flatnonzero, held_out)):
        params = jax.tree.map(lambda leaf, k=k: leaf[k], fit.params)
        A = np.asarray(predict(params, X[:, np.resize(unseen, most)]), np.float64)
        total[:, unseen] += A[:, : unseen.size]
    mean: np.ndarray = total / held_out.sum(axis=0)
    if not np.isfinite(mean).all():
        raise TrainingError(
            f"{(~np.isfinite(mean).all(axis=0)).sum()} of the {m} examples have no finite"
            " prediction: a network diverged; scale X to size 1, or pass another optimizer",
            fit,
            dict(fit.history),
        )
    return mean


ADAM = optax.adam(1e-3)  # one object, so that it is compiled once
