"""Images with labels, and deepprop's networks in PyTorch, for the benchmarks of the signals."""

import argparse
from typing import NamedTuple

import numpy as np

from benchmarks.report import RESULTS, folder
from deepprop.command.data import load_data

DIGITS = "handwritten digits (UCI, CC BY 4.0)"


class Images(NamedTuple):
    """Examples as columns, in [0, 1], with their labels."""

    name: str
    X: np.ndarray
    labels: np.ndarray
    X_test: np.ndarray
    labels_test: np.ndarray

    def of(self, classes):
        """Return the images of these classes."""
        train, test = np.isin(self.labels, classes), np.isin(self.labels_test, classes)
        parts = self.X[:, train], self.labels[train], self.X_test[:, test], self.labels_test[test]
        return Images(self.name, *parts)


TESTS = 1_000  # images at most


def load(path=None, most=None):
    """Return the handwritten digits, or the first examples of a file like Keras's mnist.npz."""
    data = load_data(path)
    name = DIGITS if path is None else "MNIST (LeCun, Cortes and Burges)"
    train = (part[..., :most] for part in (data.X, data.Y.argmax(0)))
    test = (part[..., :TESTS] for part in (data.X_test, data.Y_test.argmax(0)))
    return Images(name, *train, *test)


def one_hot(labels, n_L=10):
    """Return Y (n_L, m)."""
    return np.eye(n_L, dtype=np.float32)[:, labels]


def in_torch(params):
    """Return the same network in PyTorch, with its scores as outputs; relu in between."""
    import torch

    modules = []
    for layer in params:
        linear = torch.nn.Linear(layer.W.shape[1], layer.W.shape[0])
        linear.weight.data = torch.tensor(np.array(layer.W))
        linear.bias.data = torch.tensor(np.array(layer.b)[:, 0])
        modules += [linear, torch.nn.ReLU()]
    return torch.nn.Sequential(*modules[:-1])


def loader(X, labels, batch_size=256):
    """Return a loader of PyTorch for examples as columns."""
    import torch

    rows = torch.tensor(np.array(X.T)), torch.tensor(np.asarray(labels))
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*rows), batch_size=batch_size)


def options(doc):
    """Return a parser with the options of the benchmarks on images."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--data", action="append", default=[], metavar="FILE.npz")
    parser.add_argument(
        "--examples", type=int, default=10_000, metavar="N", help="of a file, at most"
    )
    parser.add_argument("--out", type=folder, default=RESULTS)
    return parser
