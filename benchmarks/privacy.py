"""Private training (DP-SGD): dp.fit compared with Opacus, on the same data and the same budget.

    pip install -e '.[peers,privacy]' && python -m benchmarks privacy [--data mnist.npz]

Both train the same network from the same parameters, with the same optimizer, clipping norm, noise
multiplier and expected batch size, from several seeds. Each draws its own Poisson samples and
noise. The report has the accuracy on the test set, epsilon from each library's accountant, and the
time per epoch.
"""

import argparse
import importlib
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax

import deepprop as dp
from benchmarks.report import RESULTS, folder, markdown, setting, spread, today, write
from benchmarks.training import each
from deepprop.command.data import load_data

MAX_NORM = 1.0
SETTINGS = {  # epochs, expected batch, learning rate, momentum, hidden units, epsilon, delta
    "digits": (60, 256, 1.0, 0.9, 64, 3.0, 1e-4),
    "mnist": (20, 1024, 1.0, 0.9, 128, 3.0, 1e-5),
}


def with_deepprop(data, params, setting, seed):
    """Return accuracy, epsilon and seconds per epoch, without the first, which compiles."""
    epochs, batch_size, rate, momentum, _, epsilon, delta = setting
    ends = []
    fit = dp.fit(
        params, optax.sgd(rate, momentum), data.X, data.Y, epochs=epochs, batch_size=batch_size,
        key=jax.random.key(seed),
        privacy=dp.Privacy(max_norm=MAX_NORM, delta=delta, epsilon=epsilon),
        callbacks=[lambda *_: ends.append(time.perf_counter())],
    )  # fmt: skip
    A = dp.predict(fit.params, data.X_test)
    right = jnp.mean(jnp.argmax(A, 0) == jnp.argmax(data.Y_test, 0))
    return float(right), fit.history["epsilon"][-1], np.median(np.diff(ends))


def with_opacus(data, params, setting, seed, mode="hooks"):
    """Return the same for Opacus, with its hooks or with ghost clipping."""
    import torch
    from opacus import PrivacyEngine
    from torch.utils.data import DataLoader, TensorDataset

    epochs, batch_size, rate, momentum, _, epsilon, delta = setting
    torch.manual_seed(seed)
    model = in_torch(params, torch)
    X, y = torch.tensor(data.X.T.copy()), torch.tensor(data.Y.argmax(axis=0))
    loader = DataLoader(TensorDataset(X, y), batch_size=batch_size, shuffle=True)
    m = len(X)
    steps = -(-m // batch_size)
    sigma = dp.noise_for(epsilon, sampling_rate=1 / steps, steps=epochs * steps, delta=delta)
    engine, criterion = PrivacyEngine(accountant="prv"), torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum)
    private = engine.make_private(
        module=model, optimizer=optimizer, data_loader=loader, noise_multiplier=sigma,
        max_grad_norm=MAX_NORM, criterion=criterion, grad_sample_mode=mode,
    )  # fmt: skip
    model, optimizer = private[0], private[1]
    criterion, loader = (private[2] if mode == "ghost" else criterion), private[-1]
    ends = []
    for _ in range(epochs):
        for x, label in loader:
            optimizer.zero_grad()
            criterion(model(x), label).backward()
            optimizer.step()
        ends.append(time.perf_counter())
    with torch.no_grad():
        answers = model(torch.tensor(data.X_test.T.copy())).argmax(dim=1).numpy()
    right = np.mean(answers == data.Y_test.argmax(axis=0))
    return float(right), engine.get_epsilon(delta), np.median(np.diff(ends))


def in_torch(params, torch):
    """Return the same network with the same parameters in PyTorch."""
    layers = []
    for layer in params:
        n, n_below = layer.W.shape
        linear = torch.nn.Linear(n_below, n)
        with torch.no_grad():
            linear.weight.copy_(torch.tensor(np.array(layer.W)))
            linear.bias.copy_(torch.tensor(np.array(layer.b[:, 0])))
        layers += [linear, torch.nn.Tanh()]
    return torch.nn.Sequential(*layers[:-1])


CONTENDERS = {
    "deepprop fit": ("deepprop", with_deepprop),
    "Opacus": ("opacus", with_opacus),
    "Opacus, ghost clipping": ("opacus", lambda *args: with_opacus(*args, mode="ghost")),
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="a file like Keras's mnist.npz (default: the digits)")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=folder, default=RESULTS)
    return parser.parse_args()


def results_of(seed, data, chosen):
    """Return the results of each contender from the parameters of one seed."""
    sizes = [data.X.shape[0], chosen[4], data.Y.shape[0]]
    params = dp.init_params(jax.random.key(seed), sizes, hidden="tanh")

    def train(contender):
        package, f = contender
        importlib.import_module(package)
        return f(data, params, chosen, seed)

    return each(CONTENDERS, train)


def row(name, results):
    """Return the row of a contender: medians over the seeds."""
    right, spent, seconds = np.array(results).T
    epsilon, epoch = np.median(spent), np.median(seconds)
    return [name, spread(100 * right, ".2f"), f"{epsilon:.3f}", f"{epoch:.3f}"]


def text(name, data, seeds, found):
    """Return the report."""
    epochs, batch_size, rate, momentum, units, epsilon, delta = SETTINGS[name]
    head = ["", "test accuracy, %: median (min to max)", "epsilon from its own accountant"]
    table = markdown(
        [*head, "s per epoch"], [row(contender, r) for contender, r in found.items() if r]
    )
    return f"""# Private training, {name}, {today()}

{setting()}.

{data.X.shape[0]}-{units}-{data.Y.shape[0]}, tanh, {data.X.shape[1]:,} training examples, SGD with learning rate {rate} and
momentum {momentum}, clipping norm {MAX_NORM}, batches of {batch_size} on average, {epochs} epochs, noise for
epsilon {epsilon} at delta {delta}; {seeds} seeds, each with its own initial parameters, which all
contenders share. Opacus samples with probability 1 / steps, deepprop with batch / examples.

{table}
"""


def main():
    args = arguments()
    warnings.simplefilter("ignore")  # Opacus warns about every hook
    name = "digits" if args.data is None else "mnist"
    data = load_data(args.data, held_out=0.2, seed=0, standardize=False, output=None)
    found = {contender: [] for contender in CONTENDERS}
    for seed in range(args.seeds):
        for contender, result in results_of(seed, data, SETTINGS[name]).items():
            found[contender].append(result)
            print(seed, contender, *result, flush=True)
        write(text(name, data, args.seeds, found), f"privacy-{name}", args.out)  # as they come
