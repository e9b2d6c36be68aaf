import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import sparse

import deepprop as dp
from deepprop.training.batches import _ahead, _train_minibatch
from tests.problems import problem, public_cost

pytestmark = pytest.mark.usefixtures("optax_types")
PARAMS, X, Y, W = problem(0, [4, 8, 3], 24, "relu", weighted=True, dtype=np.float32)
SGD = optax.sgd(0.1)


def split(*arrays, sizes=(10, 10, 4)):
    return list(zip(*(np.split(a, np.cumsum(sizes)[:-1], axis=-1) for a in arrays), strict=True))


def run(batches, **options):
    return dp.fit_batches(
        options.pop("params", PARAMS),
        options.pop("optimizer", SGD),
        batches,
        **{"epochs": 2, **options},
    )


@pytest.mark.ordinary(1)
@pytest.mark.parametrize("weighted", [False, True])
def test_the_steps_match_a_jax_grad_loop(weighted):
    """The reference uses the short batch as it is; fit_batches fills it."""
    batches = split(X, Y, W) if weighted else split(X, Y)
    fit = run(batches)
    params, costs, value_and_grad = PARAMS, [], jax.jit(jax.value_and_grad(public_cost))
    for _ in range(2):
        total = weight = 0.0
        for x, y, *w in batches:
            J, grads = value_and_grad(params, x, y, *w)
            params = jax.tree.map(lambda p, g: p - np.float32(0.1) * g, params, grads)
            share = w[0].sum() if w else x.shape[1]
            total, weight = total + share * float(J), weight + share
        costs.append(total / weight)
    for p, q in zip(jax.tree.leaves(fit.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(p, q, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(fit.history["cost"], costs, rtol=1e-5)


def test_short_batches_need_only_one_more_program():
    before, optimizer = _train_minibatch._cache_size(), optax.sgd(0.2)
    run(split(X, Y, sizes=(10, 10, 3, 1)), optimizer=optimizer, epochs=3)
    assert _train_minibatch._cache_size() == before + 2  # with weights, and without


def test_the_next_batch_is_drawn_while_the_current_one_is_used():
    second = threading.Event()

    def batches():
        yield "first"
        assert threading.current_thread() is not threading.main_thread()
        second.set()
        yield "second"

    ahead = _ahead(lambda batch, which: (which, batch), batches(), 7)
    assert next(ahead) == ("epoch 7, batch 0: ", "first")
    assert second.wait(10)
    assert list(ahead) == [("epoch 7, batch 1: ", "second")]
    assert not [t for t in threading.enumerate() if t.name.startswith("deepprop")]


def test_a_function_of_the_epoch_gets_its_number_and_resumes(tmp_path):
    seen = []

    def batches(epoch):
        seen.append(epoch)
        order = np.random.default_rng(epoch).permutation(24)
        return split(X[:, order], Y[:, order])

    whole = run(batches, epochs=5)
    run(batches, epochs=2, checkpoint=tmp_path)
    seen.clear()
    resumed = run(batches, epochs=5, checkpoint=tmp_path)
    assert seen == [3, 4, 5]
    for p, q in zip(jax.tree.leaves(whole.params), jax.tree.leaves(resumed.params), strict=True):
        np.testing.assert_array_equal(p, q)


def test_the_initial_params_are_not_changed():
    before = jax.tree.map(np.array, PARAMS)
    run(split(X, Y))
    for p, q in zip(jax.tree.leaves(before), jax.tree.leaves(PARAMS), strict=True):
        np.testing.assert_array_equal(p, q)


def test_validation_patience_and_callbacks_work_as_in_fit():
    fit = run(
        split(X, Y), epochs=9, validation=(X, Y), callbacks=[lambda epoch, row, params: epoch == 4]
    )
    assert fit.stopped == "callback"
    assert sorted(fit.history) == ["cost", "val_cost"]


def test_batches_drawn_into_the_same_memory():
    x, y, w = (np.zeros((n, 10), np.float32) for n in (4, 3, 1))

    def batches(epoch):
        for batch in split(X, Y, W, sizes=(10, 10, 4))[:2]:
            for place, part in zip((x, y, w[0]), batch, strict=True):
                place[...] = part
            yield x, y, w[0]

    same = run(split(X, Y, W)[:2])
    np.testing.assert_array_equal(run(batches).params[0].W, same.params[0].W)


def test_a_batch_whose_weights_are_all_zero_changes_nothing():
    first, second = split(X, Y, W, sizes=(12, 12))
    masked = (second[0], second[1], 0 * second[2])
    for p, q in zip(
        *(jax.tree.leaves(run(b).params) for b in ([first, masked], [first])), strict=True
    ):
        np.testing.assert_allclose(p, q, rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_float64_stays_float64():
    params, x, y, _ = problem(0, [4, 8, 3], 24)
    fit = run([(x, y)], params=params)
    same = dp.fit(params, SGD, x, y, epochs=2, batch_size=24, key=jax.random.key(0))
    np.testing.assert_allclose(fit.params[0].W, same.params[0].W, rtol=1e-12)


def test_a_loader_is_iterated_over_once_per_epoch():
    class Loader:
        begun = 0

        def __iter__(self):
            self.begun += 1
            return iter(split(X, Y))

    loader = Loader()
    run(loader)
    assert loader.begun == 2


@pytest.mark.parametrize("kind", ["default", "any", "built-in"])
def test_all_kinds_of_functions_of_the_epoch(kind):
    table = {1: [(X, Y)], 2: [(X, Y)]}
    functions = {
        "default": lambda epoch, seed=0: table[epoch],
        "any": lambda *args: table[args[0]],
        "built-in": table.get,
    }
    assert len(run(functions[kind]).history["cost"]) == 2


def test_an_error_in_the_loader_is_raised():
    def batches(epoch):
        yield X, Y
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        run(batches)


def once():
    yield X, Y


BAD = {
    "a generator for two epochs": (once(), ValueError, "batches must start again in each of the 2 epochs, but a generator is exhausted"),
    "no iterable": (3, TypeError, "batches must be an iterable of .X, Y., .*got int"),
    "a function without an argument": (once, TypeError, r"batches must be a function of the epoch: batches\(1\) is called for the first one, but once does not take one argument"),
    "a function of two": (lambda epoch, seed: [(X, Y)], TypeError, r"batches\(1\) is called for the first one"),
    "a function that returns nothing": (lambda epoch: None, TypeError, r"batches\(1\) must return an iterable of \(X, Y\), got NoneType"),
    "a sparse batch": ([(sparse.csr_matrix(X), Y)], TypeError, "epoch 1, batch 0: X must be a dense array"),
    "a large batch": ([(X, Y), (X * np.float64(1e39), Y)], ValueError, r"epoch 1, batch 1: X must hold numbers up to 3.4e\+38"),
    "no batch": ([], ValueError, "batches must contain at least one batch, got none in epoch 1"),
    "no pair": ([X], TypeError, r"epoch 1, batch 0: must be \(X, Y\) or \(X, Y, weights\), got ndarray"),
    "examples as rows": ([(X.T, Y.T)], ValueError, r"epoch 1, batch 0: X must have shape \(4, m\).*pass X.T"),
    "another m": ([(X, Y), (X, Y[:, :3])], ValueError, r"epoch 1, batch 1: Y must have shape \(3, 24\)"),
    "nan": ([(X, Y), (X * np.nan, Y)], ValueError, "epoch 1, batch 1: X must hold finite numbers"),
    "not one-hot": ([(X, 2 * Y)], ValueError, "epoch 1, batch 0: Y must be one-hot"),
    "weights of another m": ([(X, Y, W[:3])], ValueError, r"epoch 1, batch 0: weights must have shape \(24,\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_batches_are_named(case):
    batches, error, message = BAD[case]
    with pytest.raises(error, match=message):
        run(batches)


def test_pytorch_data_loaders():
    """Batches are lists of tensors with one example per row. Needs PyTorch, which is not an extra."""
    torch = pytest.importorskip("torch")
    from torch.utils.data import DataLoader, TensorDataset

    loader = DataLoader(
        TensorDataset(torch.tensor(X.T.copy()), torch.tensor(Y.T.copy())), batch_size=10
    )
    fit = run(lambda epoch: ((x.T, y.T) for x, y in loader))
    same = run(split(X, Y))
    np.testing.assert_array_equal(fit.params[0].W, same.params[0].W)
    assert jnp.isfinite(fit.history["cost"][0])
