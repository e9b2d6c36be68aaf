"""The report and the picture of kfac.py."""

import numpy as np

from benchmarks.report import LOOKS, markdown, setting, spread, today

ADAM, OURS = "Adam", "deepprop K-FAC, adaptive"
BATCH = 512
FIRST = 6  # steps, after which everything is compiled


def best(tried):
    """Return the setting with the lowest final J."""
    return dict(min(tried, key=tried.get))


def words(options):
    """Return the options as text."""
    return ", ".join(f"{name} {value:g}" for name, value in options)


def reached(runs, targets, steps):
    """Return the cells of steps and seconds until J reaches its target, and in how many seeds."""
    found = []
    for r, target in zip(runs, targets, strict=True):
        found += [(steps * (i + 1), r.seconds[i]) for i in np.flatnonzero(r.costs <= target)[:1]]
    if not found:
        return ["—", "—"]
    in_some = "" if len(found) == len(runs) else f", {len(found)} of {len(runs)} seeds"
    taken, seconds = np.transpose(found)
    return [spread(taken, ",.0f") + in_some, spread(seconds, ".2f") + in_some]


def reach_table(runs, steps):
    """Return the table of steps and seconds to reach a cost."""
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
    """Return the table of final costs, times and chosen settings."""
    step = {
        name: np.array([np.median(np.diff(r.seconds)) / steps for r in its])
        for name, its in runs.items()
    }
    rows = []
    for name, its in runs.items():
        ends = spread(np.array([r.costs[-1] for r in its]), ".3f")
        times = [spread(1e3 * step[name], ".2f"), spread(step[name] / step[ADAM], ".2f")]
        rows.append([name, ends, *times, f"{first[name]:.1f}", words(best(tried[name]).items())])
    head = ["", "J at the end", "ms per step", "relative to Adam's", "first steps, s", "settings"]
    return markdown(head, rows)


def text(X, sizes, epochs, tried, first, runs):
    """Return the report."""
    steps = X.shape[1] // BATCH
    tries = [[name, words(s), f"{J:.3f}"] for name, its in tried.items() for s, J in its.items()]
    return f"""# K-FAC on an autoencoder, {today()}

{setting()}.

{"-".join(map(str, sizes))}, tanh, with a sigmoid output and the binary cross-entropy, summed over units.
{X.shape[1]:,} examples, minibatches of {BATCH}, {epochs} epochs of {steps} steps, constant learning
rates. J is the mean cost per example of the training set after each epoch. Medians (minimum to
maximum) of {len(runs[ADAM])} seeds; parameters, order and targets differ between seeds. Seconds
exclude compiling and the evaluation of J; "first steps" are the first {-(-FIRST // steps)} epochs, with
compiling. kfac-jax's ten burn-in steps count in its seconds, but not in its steps. One function of
kfac-jax 0.0.8 is patched for this version of jax (`patch_kfac_jax`).

## To reach a cost

{reach_table(runs, steps)}

## All methods

{whole_table(tried, first, runs, steps)}

## The settings that were tried

On a separate seed. For kfac-jax, `max_kl` is half of its norm_constraint and `every` is its
inverse_update_period.

{markdown(["", "settings", "J at the end"], tries)}
"""


def picture(X, runs, path):
    """Draw J minus its minimum, the entropy of X, over steps and over seconds."""
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
    both[0].set_ylabel(f"J - {least:.2f}, its minimum")
    handles = both[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path)
    print(f"drawn to {path}")
