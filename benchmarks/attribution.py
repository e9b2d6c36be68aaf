"""Attribution: the same shares as captum's, and how fast.

    pip install -e '.[peers]' captum
    python -m benchmarks attribution [--data mnist.npz]

Input gradients, integrated gradients (50 steps, the midpoint rule) and DeepLIFT (the rescale rule)
of the score of the labelled class of each of 1,000 test images, against a black image, on the same
trained network. The difference is the largest one between the two libraries, relative to the
largest share. Times are medians of ten alternating rounds, after a first call of each. "Complete up
to" is the largest error of the sum of an image's shares, which should be the rise of its score over
the black image, relative to the largest rise.
"""

import time
import warnings

import jax
import numpy as np
import optax
import torch
from captum.attr import DeepLift, IntegratedGradients, Saliency

import deepprop as dp
from benchmarks.images import in_torch, load, one_hot, options
from benchmarks.report import markdown, setting, today, write
from benchmarks.training import share_of_others

HIDDEN, IMAGES, STEPS, ROUNDS = [256, 128], 1_000, 50, 10


def of_captum(net):
    """Return captum's methods by name, as functions of rows and units."""
    integrated = IntegratedGradients(net)
    return {
        "input gradients": lambda x, k: Saliency(net).attribute(x, k, abs=False),
        "integrated gradients": lambda x, k: integrated.attribute(
            x, target=k, n_steps=STEPS, method="riemann_middle"
        ),
        "DeepLIFT": lambda x, k: DeepLift(net).attribute(x, target=k),
    }


OURS = {
    "input gradients": dp.input_gradients,
    "integrated gradients": lambda params, X, k: dp.integrated_gradients(params, X, k, steps=STEPS),
    "DeepLIFT": dp.deep_lift,
}


def run(path, most):
    """Return the name of the images and the rows of the table."""
    images = load(path, most)
    params = dp.init_params(jax.random.key(0), [len(images.X), *HIDDEN, 10])
    params = dp.fit(
        params, optax.adam(1e-3), images.X, one_hot(images.labels), epochs=20, batch_size=128,
        key=jax.random.key(1),
    ).params  # fmt: skip
    X, units = images.X_test[:, :IMAGES], images.labels_test[:IMAGES]
    rows_, k = torch.tensor(np.array(X.T)), torch.tensor(units)
    Z, Z_0 = (np.asarray(dp.forward(params, P)[1].Z[-1]) for P in (X, 0 * X))
    rise = (Z - Z_0)[units, np.arange(units.size)]
    lines = []
    for name, theirs in of_captum(in_torch(params)).items():
        ours = OURS[name]
        expected = theirs(rows_, k).detach().numpy().T
        found = np.asarray(ours(params, X, units))
        difference = abs(found - expected).max() / abs(expected).max()
        times = []
        for _ in range(ROUNDS):
            begin = time.perf_counter()
            jax.block_until_ready(ours(params, X, units))
            between = time.perf_counter()
            theirs(rows_, k)
            times.append((between - begin, time.perf_counter() - between))
        mine, other = np.median(times, axis=0)
        complete = abs(found.sum(0) - rise).max() / abs(rise).max()
        whole = "" if name == "input gradients" else f"{complete:.1e}"
        lines.append(
            [
                name,
                f"{difference:.1e}",
                whole,
                f"{1e3 * mine:.1f}",
                f"{1e3 * other:.1f}",
                f"{other / mine:.1f}",
            ]
        )
        print(images.name, *lines[-1], flush=True)
    return f"{images.name}, {units.size:,} images", lines


def report(tables, busy):
    """Return the tables in Markdown."""
    head = ["", "difference", "complete up to", "deepprop, ms", "captum, ms", "captum / deepprop"]
    body = "\n\n".join(f"## {name}\n\n{markdown(head, rows)}" for name, rows in tables)
    return f"""# Attribution, {today()}

{setting()}. Other programs used {busy:.0%} of the processors.

{__doc__.split(chr(10) * 2, 2)[2].strip()}

{body}
"""


def main():
    """Measure and write the tables."""
    args = options(__doc__).parse_args()
    warnings.simplefilter("ignore")
    others = share_of_others()
    tables = [run(path, args.examples) for path in (None, *args.data)]
    write(report(tables, others() or 0.0), "attribution", args.out)


if __name__ == "__main__":
    main()
