"""Training on batches as they come, from a generator, a PyTorch DataLoader or grain.

A worker thread draws the next batch while the device works on the current one. It never runs
further ahead. A loader may write the next batch into the same memory, so each batch is copied
before the next is requested. And JAX returns from a step before the device has finished it, so the
loop waits for the previous step; otherwise a fast loader would fill the memory with batches.

A batch that is shorter than an earlier one is filled with examples of weight 0, because a new shape
would be compiled again.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from inspect import signature
from itertools import count
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from deepprop._arithmetic import over_largest
from deepprop._checks import is_known, plain_weights
from deepprop.backprop import Backward
from deepprop.layers import Params
from deepprop.training.advice import advice_for
from deepprop.training.epoch import Trained, end_of_epoch, minibatch, no_sums
from deepprop.training.examples import dropout_key, examples
from deepprop.training.identity import name_of
from deepprop.training.loop import Training
from deepprop.training.programs import Programs

LARGE = 1e20  # the largest sum of a batch's weights; its inverse is the smallest
Rows = tuple[Array, Array, Array | None]  # X (m, n_0), Y (m, n_L), weights (m,)
Batch = Sequence[ArrayLike]  # X (n_0, m), Y (n_L, m), and perhaps weights (m,)
Batches = Iterable[Batch] | Callable[[int], Iterable[Batch]]


def check_batches(batches: Any, epochs: int) -> None:
    """Raise unless `batches` can be iterated over once per epoch.

    Raises:
        TypeError: it is neither iterable nor a function of the epoch.
        ValueError: it can be iterated over only once, and there are several epochs.
    """
    if not isinstance(batches, Iterable) and not callable(batches):
        raise TypeError(
            "batches must be an iterable of (X, Y), or a function of the epoch that returns one,"
            f" got {type(batches).__name__}"
        )
    if epochs > 1 and isinstance(batches, Iterator):
        raise ValueError(
            f"batches must start again in each of the {epochs} epochs, but a generator is exhausted"
            " after one: pass a list, or a function of the epoch that returns a generator"
        )
    if not isinstance(batches, Iterable) and not _takes_one_argument(batches):
        raise TypeError(
            "batches must be a function of the epoch: batches(1) is called for the first one, but"
            f" {name_of(batches)} does not take one argument"
        )


def _takes_one_argument(function: Callable[..., Any]) -> bool:
    """Return whether it can be called with one argument; True if its signature is not known."""
    try:
        known = signature(function)
    except ValueError:
        return True
    try:
        known.bind(1)
    except TypeError:
        return False
    return True


def batches_training(
    batches: Batches,
    optimizer: optax.GradientTransformation,
    backward: Backward,
    key: Array | None,
) -> Training:
    """Return the way of training on batches as they come.

    Nothing identifies the data of such a run, as it is not known before the run reads it.

    Args:
        batches: as for `fit_batches`.
        optimizer: an optax transformation.
        backward: maps (cache, Y, weights) to gradients like params.
        key: a JAX random key for dropout, or None.
    """
    latest: list[Array] = []  # X of the latest batch, for the advice
    train = partial(
        _epoch_of_batches, batches=batches, optimizer=optimizer, backward=backward, key=key,
        latest=latest,
    )  # fmt: skip
    identity = {"backward": backward} if key is None else {"backward": backward, "key": key}
    return Training(train, lambda: identity, lambda state: advice_for(latest[0], state))


def _epoch_of_batches(
    params: Params,
    state: optax.OptState,
    epoch: int,
    *,
    batches: Batches,
    optimizer: optax.GradientTransformation,
    backward: Backward,
    key: Array | None,
    latest: list[Array],
) -> Trained:
    """Train for one epoch and return the result of `end_of_epoch`; J is taken before each step.

    Raises:
        ValueError: a batch does not fit the network, or there is none.
        TypeError: a batch is not (X, Y) or (X, Y, weights) of real numbers.
    """
    drawn = batches if isinstance(batches, Iterable) else batches(epoch)
    if not isinstance(drawn, Iterable):
        raise TypeError(
            f"batches({epoch}) must return an iterable of (X, Y), got {type(drawn).__name__}"
        )
    copy, sums, size = partial(_checked_copy, params), no_sums(params), 0
    of_epoch = None if key is None else dropout_key(params, jax.random.fold_in(key, epoch))
    params = jax.tree.map(jnp.copy, params)  # each step donates its params; the caller's stay
    for i, (X, Y, w) in enumerate(_ahead(copy, drawn, epoch)):
        of_batch = None if of_epoch is None else jax.random.fold_in(of_epoch, i)
        before, size = sums, max(size, X.shape[0])
        latest[:] = [X]
        params, state, sums = _train_minibatch(
            (params, state), sums, *_filled(X, Y, w, size), of_batch,
            optimizer=optimizer, backward=backward,
        )  # fmt: skip
        # Wait for the previous step, so that only one batch is drawn ahead.
        jax.block_until_ready(before)  # type: ignore[no-untyped-call]
    if not size:
        raise ValueError(f"batches must contain at least one batch, got none in epoch {epoch}")
    trained: Trained = _end_of_epoch(params, state, sums)
    return trained


def _minibatch(
    params_and_state: Any,
    sums: Any,
    X: Array,
    Y: Array,
    weights: Array | None,
    key: Array | None,
    **static: Any,
) -> Any:
    """Take one step on a batch with one example per row.

    Within a batch only the ratios of weights matter, so they are scaled. Between batches the sums
    matter: J of the epoch is weighted by them.
    """
    w = share = None
    if weights is not None:
        w, share = over_largest(weights), jnp.sum(weights)
    return minibatch((*params_and_state, sums), X, Y, w, share, key, **static)


_train_minibatch = Programs(_minibatch, static=("optimizer", "backward"), donate_argnums=(0,))
_end_of_epoch = jax.jit(end_of_epoch)


def _ahead(
    copy: Callable[[Batch, str], Rows], batches: Iterable[Batch], epoch: int
) -> Iterator[Rows]:
    """Yield copies of the batches; a thread draws each while the one before is in use.

    `copy` has finished before the next batch is drawn, which may reuse the memory.
    """
    rest: Iterator[Any] = iter(batches)
    end: Any = object()
    with ThreadPoolExecutor(1, "deepprop batches") as thread:
        drawn = thread.submit(next, rest, end)
        for i in count():
            if (batch := drawn.result()) is end:
                return
            copied = copy(batch, f"epoch {epoch}, batch {i}: ")
            drawn = thread.submit(next, rest, end)
            yield copied


def _checked_copy(params: Params, batch: Batch, which: str) -> Rows:
    """Check a batch, and copy it with one example per row.

    Raises:
        ValueError, TypeError: as `examples`, with `which` before the name; or it is not a pair or a
            triple, or its weights don't fit.
    """
    if not isinstance(batch, Sequence) or len(batch) not in (2, 3):
        raise TypeError(f"{which}must be (X, Y) or (X, Y, weights), got {type(batch).__name__}")
    X, Y = examples(params, batch[0], batch[1], which)
    w = None
    if len(batch) == 3:
        w = jnp.array(plain_weights(f"{which}weights", batch[2], X.shape[0], Y.dtype))
        _check_sum(f"{which}weights", w)
    return X, Y, w


def _check_sum(name: str, w: Array) -> None:
    """Raise unless a batch's sum of weights can be added to those of other batches.

    Raises:
        ValueError: it is too large, or so small that its product with J would underflow.
    """
    total = np.asarray(w, np.float64).sum() if is_known(w) else 0.0
    if total and not 1 / LARGE <= total <= LARGE:
        raise ValueError(
            f"{name} must sum to a number from {1 / LARGE:g} to {LARGE:g}, because J is weighted by"
            f" this sum, got {total:g}"
        )


def _filled(X: Array, Y: Array, w: Array | None, size: int) -> Rows:
    """Return the batch, filled up to `size` with examples of weight 0 if it is shorter."""
    lacking = size - X.shape[0]
    if not lacking:
        return X, Y, w
    w = jnp.ones(X.shape[0], Y.dtype) if w is None else w
    X, Y = (jnp.concatenate([M, jnp.zeros((lacking, M.shape[1]), M.dtype)]) for M in (X, Y))
    return X, Y, jnp.concatenate([w, jnp.zeros(lacking, w.dtype)])
