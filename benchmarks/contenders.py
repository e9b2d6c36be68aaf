"""The contenders of training.py: the same training with several libraries, as their users write it.

A contender is a function make(params, X, Y, batch_size) -> (train, cost, temporary):

    train(epochs)  continues training; returns the time at which each epoch ended on the device
    cost()         J over all examples now; None if the contender can't start from params
    temporary()    peak temporary bytes of the compiled program; None if it can't be asked

Each contender imports its own library, so that a missing library removes only that contender.
`CONTENDERS` train in float32. `IN_BFLOAT16` multiply bfloat16 numbers, with parameters in float32,
in the way that each library offers.
"""

import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import deepprop as dp
from deepprop.training.epoch import train_epoch

RATE = 1e-3
_COMPILED_BY_TORCH = tempfile.TemporaryDirectory()
os.environ["TORCHINDUCTOR_CACHE_DIR"] = (
    _COMPILED_BY_TORCH.name
)  # empty, so that nothing is compiled before
os.environ["KERAS_BACKEND"] = "jax"
os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # PyTorch needs memory of the same GPU


def on_gpu():
    """Return whether JAX runs on a GPU."""
    return jax.devices()[0].platform == "gpu"


def unknown():
    """Return None: the cost or the memory of this contender can't be asked."""
    return None


def by_epoch(epoch):
    """Return `train` for a function that trains one epoch and waits for the device."""

    def train(epochs):
        ends = []
        for _ in range(epochs):
            epoch()
            ends.append(time.perf_counter())
        return ends

    return train


def by_example(X, Y):
    """Return X and Y with one example per row, as every library except deepprop takes them."""
    return np.ascontiguousarray(X.T), np.ascontiguousarray(Y.T)


def loader(X, Y, batch_size):
    """Return a function that yields the minibatches of one epoch in a new order.

    On a CPU NumPy gathers the rows, which was faster than JAX; on a GPU the data stays there.
    """
    x, y = by_example(X, Y)
    rng = np.random.default_rng(0)

    def take(x, y, i):
        return x[i], y[i]

    if on_gpu():
        x, y, take = jnp.asarray(x), jnp.asarray(y), jax.jit(take)

    def minibatches():
        for i in rng.permutation(len(x)).reshape(-1, batch_size):
            yield take(x, y, i)

    return minibatches


def temporary_bytes(compiled):
    """Return the temporary memory that XLA reserves for a program."""
    return compiled.memory_analysis().temp_size_in_bytes


def optax_loss(z, y):
    """Return the mean cross-entropy of logits: sigmoid for one output, otherwise softmax."""
    if y.shape[1] == 1:
        return jnp.mean(optax.sigmoid_binary_cross_entropy(z, y))
    return jnp.mean(optax.softmax_cross_entropy(z, y))


def deepprop_fit(params, X, Y, batch_size, compute_dtype=None):
    """Train with dp.fit, including its work between epochs."""
    optimizer, state = optax.adam(RATE), None
    params = dp.with_compute_dtype(params, compute_dtype)

    def train(epochs):
        nonlocal params, state
        ends = []
        fit = dp.fit(
            params, optimizer, X, Y, epochs=epochs, batch_size=batch_size, state=state,
            key=jax.random.key(0), callbacks=[lambda *_: ends.append(time.perf_counter())],
        )  # fmt: skip
        params, state = fit.params, fit.state
        return ends

    def cost():
        return dp.cost(dp.forward(params, X)[1], Y)

    def temporary():
        lowered = train_epoch.lower(
            params, optimizer.init(params), jax.random.key(0), 1, *by_example(X, Y), None,
            optimizer=optimizer, backward=dp.manual_backward, batch_size=batch_size,
        )  # fmt: skip
        return temporary_bytes(lowered.compile())

    return train, cost, temporary


def rows_loss(params, x, y):
    """Return J as JAX users write it: one example per row, W (in, out)."""
    for W, b in params[:-1]:
        x = jax.nn.relu(x @ W + b)
    W, b = params[-1]
    return optax_loss(x @ W + b, y)


def rounded_loss(params, x, y):
    """Return J of a network in bfloat16 with logits in float32, as JAX users write it."""
    rounded, x = jax.tree.map(lambda P: P.astype(jnp.bfloat16), (params, x))
    for W, b in rounded[:-1]:
        x = jax.nn.relu(x @ W + b)
    W, b = rounded[-1]
    return optax_loss((x @ W + b).astype(jnp.float32), y)


def jax_grad(params, optimizer, loss=rows_loss):
    """Return the initial (parameters, state) and the step that the jax.grad contenders share."""
    start = tuple((jnp.array(p.W.T), p.b[:, 0]) for p in params)

    def step(params, state, x, y):
        grads = jax.grad(loss)(params, x, y)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return (start, optimizer.init(start)), step


def jax_grad_scanned(params, X, Y, batch_size, loss=rows_loss):
    """Train with jax.grad and optax: lax.scan over the steps of an epoch, data on the device."""
    carry, step = jax_grad(params, optax.adam(RATE), loss)
    x, y = map(jnp.asarray, by_example(X, Y))
    key = jax.random.key(0)

    @partial(jax.jit, donate_argnums=0)
    def scanned(carry, key, x, y):
        order = jax.random.permutation(key, len(x)).reshape(-1, batch_size)
        return jax.lax.scan(lambda carry, i: (step(*carry, x[i], y[i]), None), carry, order)[0]

    def epoch():
        nonlocal carry, key
        key, now = jax.random.split(key)
        carry = jax.block_until_ready(scanned(carry, now, x, y))

    def cost():
        return rows_loss(carry[0], x, y)

    def temporary():
        return temporary_bytes(scanned.lower(carry, key, x, y).compile())

    return by_epoch(epoch), cost, temporary


def jax_grad_step(params, X, Y, batch_size, loss=rows_loss):
    """Train with jax.grad and optax: one jitted step per minibatch."""
    carry, step = jax_grad(params, optax.adam(RATE), loss)
    jitted = jax.jit(step, donate_argnums=(0, 1))
    minibatches = loader(X, Y, batch_size)

    def epoch():
        nonlocal carry
        for x, y in minibatches():
            carry = jitted(*carry, x, y)
        jax.block_until_ready(carry)

    def cost():
        return rows_loss(carry[0], *by_example(X, Y))

    def temporary():
        return temporary_bytes(jitted.lower(*carry, *next(minibatches())).compile())

    return by_epoch(epoch), cost, temporary


def flax_nnx(params, X, Y, batch_size, dtype=None):
    """Train with nnx.jit and nnx.cached_partial, as in Flax's performance guide."""
    from flax import nnx

    layers = []
    for p in params:
        linear = nnx.Linear(*p.W.shape[::-1], dtype=dtype, rngs=nnx.Rngs(0))
        linear.kernel, linear.bias = nnx.Param(jnp.array(p.W.T)), nnx.Param(p.b[:, 0])
        layers += [linear, nnx.relu]
    model = nnx.Sequential(*layers[:-1])

    def loss(model, x, y):
        return optax_loss(model(x).astype(jnp.float32), y)

    optimizer = nnx.Optimizer(model, optax.adam(RATE), wrt=nnx.Param)
    minibatches = loader(X, Y, batch_size)

    @partial(nnx.jit, donate_argnums=(0, 1))
    def train_step(model, optimizer, x, y):
        J, grads = nnx.value_and_grad(lambda model: loss(model, x, y))(model)
        optimizer.update(model, grads)
        return J

    def temporary():
        lowered = train_step.lower(model, optimizer, *next(minibatches()))
        return temporary_bytes(lowered.compile())

    step = nnx.cached_partial(train_step, model, optimizer)

    def epoch():
        for x, y in minibatches():
            step(x, y)
        jax.block_until_ready(nnx.state((model, optimizer)))

    def cost():
        return loss(model, *by_example(X, Y))

    return by_epoch(epoch), cost, temporary


def equinox(params, X, Y, batch_size, dtype=None):
    """Train with eqx.filter_jit of a step with optax."""
    import equinox as eqx

    layers = []
    for p in params:
        linear = eqx.nn.Linear(*p.W.shape[::-1], key=jax.random.key(0))
        start = jnp.array(p.W), p.b[:, 0]
        layers.append(eqx.tree_at(lambda linear: (linear.weight, linear.bias), linear, start))
        layers.append(eqx.nn.Lambda(jax.nn.relu))
    model = eqx.nn.Sequential(layers[:-1])
    optimizer = optax.adam(RATE)
    state = optimizer.init(eqx.filter(model, eqx.is_array))
    minibatches = loader(X, Y, batch_size)

    def loss(model, x, y):
        if dtype is not None:
            narrow = lambda P: P.astype(dtype) if eqx.is_array(P) else P  # noqa: E731
            model, x = jax.tree.map(narrow, (model, x))
        return optax_loss(jax.vmap(model)(x).astype(jnp.float32), y)

    @partial(eqx.filter_jit, donate="all-except-first")
    def step(batch, model, state):
        grads = eqx.filter_grad(loss)(model, *batch)
        updates, state = optimizer.update(grads, state, eqx.filter(model, eqx.is_array))
        return eqx.apply_updates(model, updates), state

    def epoch():
        nonlocal model, state
        for batch in minibatches():
            model, state = step(batch, model, state)
        jax.block_until_ready(eqx.filter((model, state), eqx.is_array))

    def cost():
        return loss(model, *by_example(X, Y))

    def temporary():
        return temporary_bytes(step.lower(next(minibatches()), model, state).compile().compiled)

    return by_epoch(epoch), cost, temporary


def keras_on_jax(params, X, Y, batch_size, policy="float32"):
    """Train with Keras's compile and fit; Adam has the epsilon of the others."""
    import keras

    layers = [keras.layers.Dense(len(p.W), "relu", dtype=policy) for p in params[:-1]]
    layers += [keras.layers.Dense(len(Y), dtype=policy)]
    logits = keras.layers.Activation("linear", dtype="float32")
    model = keras.Sequential([keras.Input((len(X),)), *layers, logits])
    for layer, p in zip(layers, params, strict=True):
        layer.set_weights([p.W.T, p.b[:, 0]])
    losses = keras.losses
    loss = losses.BinaryCrossentropy if len(Y) == 1 else losses.CategoricalCrossentropy
    x, y = by_example(X, Y)
    model.compile(
        optimizer=keras.optimizers.Adam(RATE, epsilon=1e-8),
        loss=loss(from_logits=True),
        jit_compile=True,
        steps_per_execution=min(50, len(x) // batch_size),
    )

    def train(epochs):
        ends = []  # Keras has the logs of an epoch on the host, so its last step is done
        mark = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda *_: ends.append(time.perf_counter())
        )
        model.fit(
            x, y, batch_size=batch_size, epochs=epochs, shuffle=True, verbose=0, callbacks=[mark]
        )
        return ends

    def cost():
        return model.evaluate(x, y, batch_size=len(x), verbose=0)

    return train, cost, unknown


def torch_model(params):
    """Return the network with these parameters as PyTorch users write it, and its device."""
    import torch
    from torch import nn

    if on_gpu() and not torch.cuda.is_available():
        raise RuntimeError("JAX has a GPU here, but PyTorch has none")
    device = "cuda" if on_gpu() else "cpu"
    layers = []
    for p in params:
        linear = nn.Linear(*p.W.shape[::-1])
        with torch.no_grad():
            linear.weight.copy_(torch.tensor(np.asarray(p.W)))
            linear.bias.copy_(torch.tensor(np.asarray(p.b[:, 0])))
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).to(device), device


def pytorch(params, X, Y, batch_size, *, compiled, autocast=False):
    """Train with PyTorch's fused Adam; indexing makes minibatches faster than a DataLoader."""
    import torch
    from torch import nn

    model, device = torch_model(params)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
    x, y = (torch.tensor(array, device=device) for array in by_example(X, Y))
    cross_entropy = nn.BCEWithLogitsLoss() if len(Y) == 1 else nn.CrossEntropyLoss()

    def loss(x, y):
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            return cross_entropy(model(x), y)

    if compiled:  # model and loss together, which was faster; Adam is fused already
        torch.compiler.reset()
        mode = "reduce-overhead" if on_gpu() else "default"
        loss = torch.compile(loss, dynamic=False, mode=mode)

    def epoch():
        for i in torch.randperm(len(x), device=device).split(batch_size):
            optimizer.zero_grad(set_to_none=True)
            loss(x[i], y[i]).backward()
            optimizer.step()
        if on_gpu():
            torch.cuda.synchronize()

    def cost():
        with torch.no_grad():
            return cross_entropy(model(x), y)

    return by_epoch(epoch), cost, unknown


def scikit_learn(params, X, Y, batch_size):
    """Train an MLPClassifier. It draws its own parameters, so its cost is not compared."""
    from sklearn.neural_network import MLPClassifier

    if on_gpu():
        raise RuntimeError("scikit-learn runs on CPUs only")
    x, _ = by_example(X, Y)
    y = Y.argmax(axis=0) if len(Y) > 1 else Y[0]
    hidden = [len(p.W) for p in params[:-1]]
    model = MLPClassifier(hidden, alpha=0.0, batch_size=batch_size, learning_rate_init=RATE)
    classes = np.unique(y)

    def epoch():
        model.partial_fit(x, y, classes=classes)

    return by_epoch(epoch), unknown, unknown


class Contender(NamedTuple):
    """The function that makes a contender, and the import name of the package it needs."""

    make: Callable
    package: str


BASE = "deepprop fit"
CONTENDERS = {
    BASE: Contender(deepprop_fit, "deepprop"),
    "jax.grad, scanned": Contender(jax_grad_scanned, "optax"),
    "jax.grad, a step": Contender(jax_grad_step, "optax"),
    "Equinox": Contender(equinox, "equinox"),
    "Flax NNX": Contender(flax_nnx, "flax"),
    "Keras on JAX": Contender(keras_on_jax, "keras"),
    "PyTorch compiled": Contender(partial(pytorch, compiled=True), "torch"),
    "PyTorch eager": Contender(partial(pytorch, compiled=False), "torch"),
    "scikit-learn": Contender(scikit_learn, "sklearn"),
}

NARROW = "bfloat16"
IN_BFLOAT16 = {
    BASE: Contender(partial(deepprop_fit, compute_dtype=NARROW), "deepprop"),
    "deepprop, float32": Contender(deepprop_fit, "deepprop"),
    "jax.grad, scanned": Contender(partial(jax_grad_scanned, loss=rounded_loss), "optax"),
    "Equinox": Contender(partial(equinox, dtype=NARROW), "equinox"),
    "Flax NNX": Contender(partial(flax_nnx, dtype=NARROW), "flax"),
    "Keras on JAX": Contender(partial(keras_on_jax, policy="mixed_bfloat16"), "keras"),
    "PyTorch compiled, autocast": Contender(
        partial(pytorch, compiled=True, autocast=True), "torch"
    ),
    "PyTorch eager, autocast": Contender(partial(pytorch, compiled=False, autocast=True), "torch"),
    "PyTorch compiled, float32": Contender(partial(pytorch, compiled=True), "torch"),
}
