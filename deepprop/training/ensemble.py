"""Training many networks of one shape at once: an ensemble, or a sweep over hyperparameters."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from deepprop._arguments import check_params
from deepprop._checks import check_key, dense_array, example_weights, real_array, whole_number
from deepprop.backprop import Backward, manual_backward
from deepprop.layers import Params
from deepprop.optimizers.optax_calls import started
from deepprop.training.checkpoint import Checkpoint
from deepprop.training.epoch import Trained, check_training, one_epoch
from deepprop.training.examples import Data, identity_of_data, in_memory
from deepprop.training.former_arguments import takes_former_arguments
from deepprop.training.loop import Callback, Fit, Progress, Training
from deepprop.training.measure import Pair, Triple, Validation, measure_of
from deepprop.training.programs import Programs
from deepprop.training.run import fresh, initial_state, run_or_resume, transfers_allowed

Optimizer: TypeAlias = optax.GradientTransformation | Callable[..., optax.GradientTransformation]


@takes_former_arguments
@transfers_allowed
def fit_ensemble(
    params: Params,
    optimizer: Optimizer,
    X: ArrayLike,
    Y: ArrayLike,
    *,
    epochs: int,
    first_epoch: int = 1,
    batch_size: int,
    key: Array,
    sweep: Mapping[str, ArrayLike] | None = None,
    weights: ArrayLike | None = None,
    validation: Validation | Pair | Triple | None = None,
    callbacks: Sequence[Callback] = (),
    backward: Backward = manual_backward,
    state: optax.OptState | None = None,
    checkpoint: Checkpoint | str | Path | None = None,
) -> Fit:
    """Train K networks of one shape in one compiled program, each as `fit` would train it.

    The networks may differ in their parameters, the order of the examples, or the optimizer's
    hyperparameters.

    >>> import jax, optax, deepprop as dp, jax.numpy as jnp
    >>> make = lambda key: dp.init_params(key, [1, 8, 1], hidden="tanh", output="identity")
    >>> params = jax.vmap(make)(jax.random.split(jax.random.key(0), 3))
    >>> X = jnp.linspace(-1, 1, 64).reshape(1, 64)
    >>> fit = dp.fit_ensemble(params, optax.sgd, X, X**2, epochs=40, batch_size=16,
    ...     key=jax.random.key(1), sweep={"learning_rate": jnp.array([0.001, 0.1, 0.3])})
    >>> fit.history["cost"].shape, int(fit.history["cost"][-1].argmax())
    ((40, 3), 0)
    >>> best = jax.tree.map(lambda leaf: leaf[2], fit.params)  # as `fit` would return it
    >>> best[0].W.shape
    (8, 1)

    Args:
        params: layers with a leading axis of K, as `jax.vmap` of `init_params` returns them; or the
            layers of one network, from which all K start.
        optimizer: an optax transformation for all networks; or, with `sweep`, a function that
            returns one, such as `optax.adamw`.
        X: (n_0, m), one example per column.
        Y: (n_L, m), the targets.
        epochs: the number of passes over the examples.
        first_epoch: the number of the first epoch of this call, as for `fit`.
        batch_size: examples per step, at most m.
        key: a JAX random key, for the same order of examples in all networks; or K keys.
        sweep: (K,) values by the name of an argument of `optimizer`, one value per network.
            `optimizer` is called under `jit`: it can compute with the values, but not branch on
            them. A random key in the optimizer is the same for all networks.
        weights: (m,), one per example; or (K, m), for each network its own. With 0 and 1 these are
            the folds of a cross-validation.
        validation: as for `fit`, but without patience.
        callbacks: as for `fit`; a row of the history has K values for each entry.
        backward: maps (cache, Y, weights) to gradients like params, for one network.
        state: the optimizer's state with a leading axis of K, from an earlier `Fit`; None starts a
            new one.
        checkpoint: as for `fit`.

    Returns:
        A `Fit` whose params and state have a leading axis of K, and whose history has arrays
        (epochs, K). A network that is no longer finite does not stop the others.

    Raises:
        TrainingError: no network is finite any longer.
        ValueError, TypeError, ImportError: as for `fit`; or params, keys, sweep and weights
            disagree on K.
    """
    several = _has_leading_axis(params)
    one = jax.tree.map(lambda leaf: leaf[0], params) if several else params
    check_params(one)
    entries = _checked_sweep(sweep or {}, one[0].W.dtype)
    weights = None if weights is None else dense_array("weights", weights)
    each = weights if weights is not None and weights.ndim == 2 else None
    K = _number_of_networks(params if several else (), key, entries, each)
    if not several:
        params = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (K, *leaf.shape)), params)
    if entries and isinstance(optimizer, optax.GradientTransformation):
        raise TypeError("optimizer must be a function of the entries of sweep, such as optax.adam")
    data, batch_size = in_memory(one, X, Y, weights if each is None else None, batch_size)
    if each is not None:
        data = data._replace(weights=_weights_of_networks(each, K, data))
    epochs = whole_number("epochs", epochs)
    measure = measure_of(one, validation)
    if measure is not None and measure.patience is not None:
        raise ValueError(
            "patience must be None for an ensemble, as its networks can't stop one by one,"
            f" got {measure.patience}"
        )
    measure = measure and replace(measure, several=True)

    def train(params: Params, state: optax.OptState, epoch: int) -> Any:
        return _train_epoch(
            params, state, key, epoch, entries, *data,
            optimizer=optimizer, backward=backward, batch_size=batch_size,
        )  # fmt: skip

    def identity() -> dict[str, Any]:
        values = {name: values.tolist() for name, values in entries.items()}
        return {**identity_of_data(data, key, batch_size, backward), "sweep": values}

    init = partial(_new_states, optimizer=optimizer, backward=backward)
    state = initial_state(state, init, params, entries)
    return run_or_resume(
        Training(train, identity, data.advice), measure,
        Progress(params, state, (), params), checkpoint,
        epochs=epochs, first_epoch=first_epoch, callbacks=callbacks,
    )  # fmt: skip


def _one_epoch(
    params: Params,
    state: optax.OptState,
    key: Array,
    epoch: Array,
    sweep: Mapping[str, Array],
    X: Array,
    Y: Array,
    weights: Array | None,
    m: Array | None,
    *,
    optimizer: Optimizer,
    backward: Backward,
    batch_size: int,
) -> Trained:
    """Train every network for one epoch: `one_epoch` under `vmap`."""

    def of_network(
        params: Params, state: optax.OptState, key: Array, entries: Any, weights: Array | None
    ) -> Any:
        return one_epoch(
            params, state, key, epoch, X, Y, weights, m, backward=backward, batch_size=batch_size,
            optimizer=_optimizer_of(optimizer, entries, backward),
        )  # fmt: skip

    own_weights = weights is not None and weights.ndim == 2
    axes = 0, 0, 0 if _are_keys(key) else None, 0, 0 if own_weights else None
    params, state, entries, finite = jax.vmap(of_network, in_axes=axes)(
        params, state, key, sweep, weights
    )
    return params, state, entries, jnp.any(finite)


def _states(
    params: Params, sweep: Mapping[str, Array], *, optimizer: Optimizer, backward: Backward
) -> Any:
    """Return the new state of each network's optimizer."""

    def init(params: Params, entries: Mapping[str, Array]) -> Any:
        return fresh(started(_optimizer_of(optimizer, entries, backward), params))

    return jax.vmap(init)(params, sweep)


_new_states = Programs(_states, static=("optimizer", "backward"))
_train_epoch = Programs(
    _one_epoch,
    static=("optimizer", "backward", "batch_size"),
    donate_argnums=(1,),  # the state
)


def _optimizer_of(
    optimizer: Optimizer, entries: Mapping[str, Array], backward: Backward
) -> optax.GradientTransformation:
    """Return the optimizer of one network, given its entries of the sweep, after a check."""
    of_network: Any = optimizer
    if entries:
        of_network = of_network(**entries)
    check_training(of_network, backward)
    return of_network


def _weights_of_networks(weights: Any, K: int, data: Data) -> Array:
    """Return the weights of each network's examples, (K, M); rows beyond the examples get 0.

    Raises:
        ValueError: there are not K rows, or as `example_weights`.
        TypeError: they are not real numbers.
    """
    rows = dense_array("weights", weights)
    M, m = len(data.X), len(data.X) if data.m is None else int(data.m)
    if rows.shape != (K, m):
        raise ValueError(f"weights must have shape ({m},) or ({K}, {m}), got shape {rows.shape}")
    checked = (
        np.asarray(example_weights(row, m, data.Y.dtype, f"weights[{k}]"))
        for k, row in enumerate(np.asarray(rows))
    )
    return jnp.asarray(np.pad(np.stack([*checked]), ((0, 0), (0, M - m))))


def _are_keys(key: Array) -> bool:
    """Return whether it is an array of keys rather than one key."""
    return key.ndim > (0 if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else 1)


def _checked_sweep(sweep: Mapping[str, ArrayLike], dtype: Any) -> dict[str, Array]:
    """Return the entries as arrays (K,), in the dtype of the parameters unless integers.

    Raises:
        TypeError: it is not a mapping, or an entry is not real numbers.
        ValueError: an entry does not have the shape (K,).
    """
    if not isinstance(sweep, Mapping):
        raise TypeError(
            f"sweep must be a mapping of names to (K,) numbers, got {type(sweep).__name__}"
        )
    entries = {name: real_array(f"sweep {name}", values) for name, values in sweep.items()}
    for name, values in entries.items():
        if values.ndim != 1:
            raise ValueError(f"sweep {name} must have shape (K,), got {values.shape}")
        if jnp.issubdtype(values.dtype, jnp.floating):
            entries[name] = values.astype(dtype)
    return entries


def _number_of_networks(
    params: Params, key: Any, sweep: Mapping[str, Array], weights: Any = None
) -> int:
    """Return the number of networks K.

    Args:
        params: layers with a leading axis of K; or an empty tuple.
        key: one key, or K keys.
        sweep: arrays (K,).
        weights: (K, m), or None.

    Raises:
        ValueError: params, keys, sweep and weights disagree, or none of them says.
        TypeError: `key` is neither a key nor K keys.
    """
    counts = {f"sweep {name}": len(values) for name, values in sweep.items()}
    if weights is not None:
        counts["weights"] = len(weights)
    if getattr(key, "ndim", 0) and _are_keys(key):
        check_key(key[0])
        counts["key"] = key.shape[0]
    else:
        check_key(key)
    for l, layer in enumerate(params, start=1):
        leaves = {f"W[{l}]": layer.W, f"b[{l}]": layer.b}
        counts |= {name: leaf.shape[0] for name, leaf in leaves.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise ValueError(
            "params with a leading axis of K, K keys, a sweep of K numbers or (K, m) weights must"
            f" give the number of networks, and must agree on it, got {counts or 'none of them'}"
        )
    return next(iter(counts.values()))


def _has_leading_axis(params: Any) -> bool:
    """Return whether params belong to several networks.

    A leading axis may also be that of a stack, but the last layer of a network is never a stack.
    """
    W: Any = getattr(params[-1], "W", None) if isinstance(params, tuple) and params else None
    return getattr(W, "ndim", 0) == 3 and len(W) > 0
