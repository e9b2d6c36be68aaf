"""What the benchmark of K-FAC writes and draws."""

import numpy as np
from report import LOOKS, markdown, setting, spread, today

ADAM, OURS = "Adam", "deepprop K-FAC, adaptive"
BATCH = 512
FIRST = 6  # steps, after which all is compiled


def best(tried):
    return dict(min(tried, key=tried.get))


def words(options):
    return ", ".join(f"{name} {value:g}" for name, value in options)


def reached(runs, targets, steps):
    """Steps and seconds until J was at its target: of the seeds where it was, and how many."""
    found = []
    for r, target in zip(runs, targets, strict=True):
        found += [(steps * (i + 1), r.seconds[i]) for i in np.flatnonzero(r.costs <= target)[:1]]
    if not found:
        return ["—", "—"]
    some = "" if len(found) == len(runs) else f", {len(found)} of {len(runs)} seeds"
    taken, seconds = np.transpose(found)
    return [spread(taken, ",.0f") + some, spread(seconds, ".2f") + some]


def reach_table(runs, steps):
    half = len(runs[ADAM][0].costs) // 2 - 1
    rows = []
    for of, at, when in [
        (ADAM, half, "at half"),
        (ADAM, -1, "at the end"),
        (OURS, half, "at half"),
    ]:
        targets = [r.costs[at] for r in runs[of]]
        for name, its in runs.items():
            target = f"{of}'s {when}: {np.median(targets):.2f}"
            rows.append([target, name, *reached(its, targets, steps)])
    return markdown(["J to reach", "", "steps", "seconds"], rows)


def whole_table(tried, first, runs, steps):
    step = {
        name: np.array([np.median(np.diff(r.seconds)) / steps for r in its])
        for name, its in runs.items()
    }
    rows = []
    for name, its in runs.items():
        ends = spread(np.array([r.costs[-1] for r in its]), ".3f")
        times = [spread(1e3 * step[name], ".2f"), spread(step[name] / step[ADAM], ".2f")]
        rows.append([name, ends, *times, f"{first[name]:.1f}", words(best(tried[name]).items())])
    head = ["", "J at the end", "ms a step", "by Adam's", "first steps, s", "settings"]
    return markdown(head, rows)


def text(X, sizes, epochs, tried, first, runs):
    steps = X.shape[1] // BATCH
    tries = [[name, words(s), f"{J:.3f}"] for name, its in tried.items() for s, J in its.items()]
    return f"""# K-FAC on an autoencoder, {today()}

{setting()}.

{"-".join(map(str, sizes))}, tanh, at the output sigmoid with the binary cross-entropy, summed over
units. {X.shape[1]:,} examples, minibatches of {BATCH}, {epochs} epochs of {steps} steps; constant
rates. J is the cost an example over the training set, after each epoch. Medians (minimum to
maximum) of {len(runs[ADAM])} seeds, each of which has parameters, an order and targets of its own.
Seconds are of training, without compiling and without measuring J; "first steps" are the first
{-(-FIRST // steps)} epochs and compiling. kfac-jax's ten burn-in steps are in its seconds, not in
its steps. In kfac-jax 0.0.8 one function is mended for this jax (`mend_kfac_jax`).

## To reach a cost

{reach_table(runs, steps)}

## All of it

{whole_table(tried, first, runs, steps)}

## The settings that were tried

On a seed of their own. For kfac-jax `max_kl` is half its norm_constraint, `every` its
inverse_update_period.

{markdown(["", "settings", "J at the end"], tries)}
"""


def picture(X, runs, path):
    """J above the least there is, which is the entropy of X, against steps and seconds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    entropy = -sum(p * np.log(np.where(p > 0, p, 1)) for p in (X, 1 - X))
    least = np.mean(np.sum(entropy, axis=0, dtype=float))
    figure, both = plt.subplots(1, 2, figsize=(9, 4.4), dpi=200, sharey=True, layout="constrained")
    for (name, its), (colour, _) in zip(
        runs.items(), [LOOKS[0], LOOKS[5], LOOKS[4], LOOKS[1], LOOKS[3]], strict=False
    ):
        for k, r in enumerate(its):
            steps = X.shape[1] // BATCH * np.arange(1, len(r.costs) + 1)
            for axes, along in zip(both, [steps, r.seconds], strict=True):
                axes.plot(
                    along, r.costs - least, color=colour, label="" if k else name, linewidth=1
                )
    for axes, along in zip(both, ["steps", "seconds of training"], strict=True):
        axes.set(xscale="log", yscale="log", xlabel=along)
        axes.grid(which="both", color="0.9", linewidth=0.6)
    both[0].set_ylabel(f"J - {least:.2f}, the least there is")
    handles = both[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path)
    print(f"drawn to {path}")
