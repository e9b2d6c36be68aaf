"""Influence: whether the scores predict training without examples, and how long they take.

    pip install -e '.[peers]' kronfluence
    python -m benchmarks influence [--data mnist.npz]

The linear datamodelling score (Park et al. 2023, arXiv:2303.14186): networks are trained on random
halves of the training images. For each test image, the summed scores of each half are compared with
the test loss after training on that half, as a rank correlation over all halves; the table has the
mean over 100 test images and its standard error. The seconds are for scoring all training images
for these test images, compilation included; all contenders score the same training run.

Leaving one out: a small network is trained to its minimum, with weight decay. For each of 100
images, training then continues from there without that image. The table has the correlation of the
scores with the changes of the losses of 20 test images.
"""

import tempfile
import time
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import ScoreArguments
from kronfluence.task import Task
from scipy.stats import spearmanr

import deepprop as dp
from benchmarks.images import in_torch, load, one_hot, options
from benchmarks.report import markdown, setting, today, write
from benchmarks.training import share_of_others

HIDDEN, HALVES, TESTS = [128], 100, 100
STEPS, BATCH, RATE, CHECKPOINTS = 1_000, 128, 0.03, 10
LEFT_OUT, DECAY, FULL_STEPS = 100, 1e-3, 4_000


def trained(params, X, Y, epochs, key, **options):
    """Return networks trained by SGD with momentum."""
    optimizer = optax.sgd(RATE, momentum=0.9)
    return dp.fit_ensemble(
        params, optimizer, X, Y, epochs=epochs, batch_size=BATCH, key=key, **options
    )


def losses(params, X, Y):
    """Return the loss of each example for each network, (networks, m)."""

    @jax.jit
    @jax.vmap
    def of(params):
        Z = dp.forward(params, X)[1].Z[-1]
        return params[-1].activation.loss(Z, jnp.asarray(Y))

    return np.asarray(of(params))


class Classification(Task):
    """What kronfluence asks for."""

    def compute_train_loss(self, batch, model, sample=False):
        """Return the loss of the labels, or of sampled ones."""
        x, y = batch
        Z = model(x)
        if sample:
            with torch.no_grad():
                y = torch.multinomial(torch.softmax(Z, dim=-1), num_samples=1).flatten()
        return torch.nn.functional.cross_entropy(Z, y, reduction="sum")

    def compute_measurement(self, batch, model):
        """Return the loss whose change is in question."""
        return self.compute_train_loss(batch, model)


def kronfluence(damping):
    """Return a contender: kronfluence's EK-FAC, with that damping."""
    return partial(by_kronfluence, damping=damping)


def by_kronfluence(params, kept, X, labels, X_test, labels_test, *, damping):
    """Score by kronfluence; None takes a tenth of the mean of the curvature as damping."""
    task = Classification()
    model = prepare_model(in_torch(params), task)
    sets = [
        torch.utils.data.TensorDataset(torch.tensor(np.array(P.T)), torch.tensor(np.array(y)))
        for P, y in ((X, labels), (X_test, labels_test))
    ]
    with tempfile.TemporaryDirectory() as place:
        analyzer = Analyzer("run", model, task, cpu=True, output_dir=place, disable_tqdm=True)
        analyzer.fit_all_factors("factors", sets[0], per_device_batch_size=1024)
        analyzer.compute_pairwise_scores(
            "scores", "factors", query_dataset=sets[1], train_dataset=sets[0],
            per_device_query_batch_size=len(labels_test), per_device_train_batch_size=1024,
            score_args=ScoreArguments(damping_factor=damping),
        )  # fmt: skip
        return analyzer.load_pairwise_scores("scores")["all_modules"].numpy().T


def ours(damping=None):
    """Return a contender: `dp.influence`."""

    def scores(params, kept, X, labels, X_test, labels_test):
        return dp.influence(
            params, X, one_hot(labels), X_test, one_hot(labels_test), damping=damping
        )

    return scores


def tracin(params, kept, X, labels, X_test, labels_test):
    """Score by TracIn over the checkpoints."""
    return dp.tracin(kept, [RATE] * len(kept), X, one_hot(labels), X_test, one_hot(labels_test))


def gradients(params, kept, X, labels, X_test, labels_test):
    """Score by products of gradients at the end of training."""
    return dp.tracin([params], [1.0], X, one_hot(labels), X_test, one_hot(labels_test))


def alike(params, kept, X, labels, X_test, labels_test):
    """Score by the cosine of A[L-1], with the sign of whether the labels are equal."""

    def unit(X):
        A = np.asarray(dp.forward(params, X)[1].A[-2])
        return A / np.linalg.norm(A, axis=0)

    return (unit(X).T @ unit(X_test)) * np.where(labels[:, None] == labels_test, 1, -1)


CONTENDERS = {
    "dp.influence": ours(),
    "dp.influence, damping 0.001": ours(1e-3),
    "dp.influence, damping 0.0001": ours(1e-4),
    "kronfluence, its default damping": kronfluence(1e-8),
    "kronfluence": kronfluence(None),
    "kronfluence, damping 0.001": kronfluence(1e-3),
    f"dp.tracin, {CHECKPOINTS} checkpoints": tracin,
    "dp.tracin, the last": gradients,
    "alike in A[L-1]": alike,
}


def datamodelling(images):
    """Return the rows of the linear datamodelling score."""
    X, labels = images.X, images.labels
    X_test, labels_test = images.X_test[:, :TESTS], images.labels_test[:TESTS]
    m = labels.size

    def make(key):
        return dp.init_params(key, [len(X), *HIDDEN, 10])

    keys = jax.random.split(jax.random.key(0), HALVES)
    random = np.random.default_rng(0)
    halves = np.array([random.permutation(m) < m // 2 for _ in range(HALVES)], np.float32)
    epochs = max(CHECKPOINTS, STEPS // (m // BATCH))
    after = np.zeros((HALVES, TESTS))
    for repeat in range(2):  # the mean over two trainings has less of their chance in it
        params = jax.vmap(make)(jax.vmap(jax.random.fold_in, (0, None))(keys, repeat))
        fit = trained(params, X, one_hot(labels), epochs, keys, weights=halves)
        after += losses(fit.params, X_test, one_hot(labels_test)) / 2
    kept = []

    def keep(epoch, row, params):
        if epoch * CHECKPOINTS // epochs > (epoch - 1) * CHECKPOINTS // epochs:
            kept.append(jax.tree.map(lambda p: jnp.copy(p[0]), params))

    one = jax.tree.map(lambda p: p[None], make(jax.random.key(1)))
    fit = trained(one, X, one_hot(labels), epochs, jax.random.key(2), callbacks=[keep])
    params, rows = jax.tree.map(lambda p: p[0], fit.params), []
    for name, scores in CONTENDERS.items():
        begin = time.perf_counter()
        found = np.asarray(scores(params, kept, X, labels, X_test, labels_test))
        seconds = time.perf_counter() - begin
        predicted = -halves @ found
        each = [spearmanr(predicted[:, j], after[:, j]).statistic for j in range(TESTS)]
        rows.append(
            [name, f"{np.mean(each):.3f} ± {np.std(each) / np.sqrt(TESTS):.3f}", f"{seconds:.1f}"]
        )
        print(images.name, *rows[-1], flush=True)
    return rows


def leaving_out(images):
    """Return the rows of the correlation with training again without one image."""
    X, Y = images.X[:, :1000], one_hot(images.labels[:1000])
    X_test, Y_test = images.X_test[:, :20], one_hot(images.labels_test[:20])
    params = dp.init_params(jax.random.key(0), [len(X), 16, 10], hidden="tanh")
    optimizer = optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(0.5, momentum=0.9))
    options = {"batch_size": 1000, "key": jax.random.key(1)}
    params = dp.fit(params, optimizer, X, Y, epochs=FULL_STEPS, **options).params
    w = np.ones((LEFT_OUT + 1, 1000), np.float32)
    w[np.arange(LEFT_OUT), np.arange(LEFT_OUT)] = 0  # the last has all images
    fit = dp.fit_ensemble(params, optimizer, X, Y, epochs=FULL_STEPS // 4, weights=w, **options)
    after = losses(fit.params, X_test, Y_test)
    rises = (after[:-1] - after[-1]).ravel()
    args = X, Y, X_test, Y_test
    rows = []
    for name, scores in (
        (
            f"dp.influence, damping {DECAY:g}, the weight decay",
            dp.influence(params, *args, damping=DECAY),
        ),
        ("dp.influence", dp.influence(params, *args)),
        ("products of gradients", dp.tracin([params], [1.0], *args)),
    ):
        found = np.asarray(scores)[:LEFT_OUT].ravel()
        r = np.corrcoef(found, rises)[0, 1]
        slope = np.sum(found * rises) / np.sum(found**2)
        rows.append([name, f"{r:.3f}", f"{spearmanr(found, rises).statistic:.3f}", f"{slope:.2f}"])
        print(*rows[-1], flush=True)
    return rows


def report(tables, left_out, busy):
    """Return the tables in Markdown."""
    head = ["", "linear datamodelling score", "seconds"]
    body = "\n\n".join(f"## {name}\n\n{markdown(head, rows)}" for name, rows in tables)
    return f"""# Influence, {today()}

{setting()}. Other programs used {busy:.0%} of the processors.

{__doc__.split(chr(10) * 2, 2)[2].strip()}

{HALVES} halves, each with the mean of two trainings; networks with {HIDDEN[0]} hidden units, trained by SGD
with momentum. Without a number, `dp.influence` takes 0.3 times the mean of the curvature of all layers
as damping, and kronfluence 0.1 times the mean of each layer's; the default of kronfluence is 1e-8.

{body}

## Leaving one out, handwritten digits

{markdown(["", "correlation", "rank correlation", "rise per score"], left_out)}
"""


def main():
    """Measure and write the tables."""
    args = options(__doc__).parse_args()
    warnings.simplefilter("ignore")
    others = share_of_others()
    images = [load(path, args.examples) for path in (None, *args.data)]
    left_out = leaving_out(images[0])
    tables = [(one.name, datamodelling(one)) for one in images]
    write(report(tables, left_out, others() or 0.0), "influence", args.out)


if __name__ == "__main__":
    main()
