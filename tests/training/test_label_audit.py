"""The audit of labels: planted mistakes are found, and each network judges what it has not seen."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import deepprop as dp
from deepprop.command.data import load_data
from deepprop.training import label_audit
from deepprop.training.label_audit import by_confusion

pytestmark = pytest.mark.usefixtures("optax_types")


def flipped(labels, share, pairs=None, seed=0):
    """Labels of which a share is wrong, and which: any other class, or that of `pairs`."""
    random, wrong = np.random.default_rng(seed), labels.copy()
    among = np.arange(len(labels)) if pairs is None else np.flatnonzero(np.isin(labels, [*pairs]))
    chosen = random.choice(among, round(share * len(labels)), replace=False)
    classes = labels.max() + 1
    for i in chosen:
        y = int(labels[i])
        wrong[i] = (y + random.integers(1, classes)) % classes if pairs is None else pairs[y]
    return wrong, wrong != labels


@pytest.fixture(scope="module")
def digits():
    data = load_data(None)
    return np.concatenate([data.X, data.X_test], 1), np.concatenate([data.Y, data.Y_test], 1)


@pytest.mark.ordinary(1)
@pytest.mark.parametrize("pairs", [None, {4: 9, 9: 4, 3: 8, 8: 3}])
def test_planted_labels_are_found(digits, pairs):
    """Of as many as were planted, above 0.8 are wrong: by chance it would be the share, 0.05."""
    X, Y = digits
    labels, bad = flipped(Y.argmax(0), 0.05, pairs)
    found = dp.audit(X, np.eye(10)[:, labels], key=jax.random.key(0), repeats=1)
    first = found.example[: bad.sum()]
    assert bad[first].mean() > 0.8
    right = bad[first]
    assert (found.suggested[: bad.sum()][right] == Y.argmax(0)[first][right]).mean() > 0.9
    np.testing.assert_array_equal(found.label, labels[found.example])
    assert sorted(found.example) == list(range(len(labels)))
    assert (np.diff(found.score) <= 0).all()
    assert (found.suggested != found.label).all()
    assert str(found).count("\n") == 12


def stub(seen, params=None):
    """Return a `fit_ensemble` that notes what it gets and returns the parameters it is to return."""

    def fit_ensemble(given, optimizer, X, Y, **options):
        seen.append({"params": given, "optimizer": optimizer, **options})
        return dp.Fit(given if params is None else params, None, {}, None)

    return fit_ensemble


def test_each_network_judges_only_what_it_has_not_seen(monkeypatch):
    """Network k is sure of class k % 2, whatever it sees: who judges whom shows in the answer."""
    seen, K = [], 15
    bias = np.where(np.arange(K)[:, None] % 2 == np.arange(2), 20.0, 0.0)[:, :, None]
    layers = (dp.Layer(jnp.zeros((K, 2, 2)), jnp.asarray(bias, jnp.float32), dp.output("softmax")),)
    monkeypatch.setattr(label_audit, "fit_ensemble", stub(seen, layers))
    X, labels = np.random.default_rng(0).standard_normal((2, 50)), np.arange(50) % 2
    Y, key = np.eye(2)[:, labels], jax.random.key(0)
    found = dp.audit(X, Y, key=key, network=(), folds=5, repeats=3)
    weights = seen[0]["weights"]
    assert weights.shape == (K, 50)
    held_out = weights == 0
    assert (held_out.reshape(3, 5, 50).sum(axis=1) == 1).all()  # each example once per repeat
    assert (held_out[:, labels == 0].sum(axis=1) == 5).all()  # and each fold has both classes
    assert len({frozenset(np.flatnonzero(row)) for row in held_out}) == K
    judges = [np.flatnonzero(column) for column in held_out.T]
    np.testing.assert_allclose(found.predictions[1], [np.mean(k % 2) for k in judges], atol=1e-6)


def test_confusions_are_learnt_from_the_labels():
    """Half of the first class is labelled as the second, and the networks only know the classes."""
    classes = np.repeat([0, 1, 2], 200)
    labels = np.where((classes == 0) & (np.arange(600) % 2 == 0), 1, classes)
    p = np.full((3, 600), 0.05)
    p[classes, np.arange(600)] = 0.9
    q, T = by_confusion(p, labels)
    np.testing.assert_allclose(q.sum(axis=0), 1)
    np.testing.assert_allclose(T.sum(axis=1), 1)
    assert T[0, 1] == pytest.approx(0.5, abs=0.05)
    assert T[1, 0] < 0.03
    score = 1 - q[labels, np.arange(600)]
    frequent = score[labels != classes].min()
    assert frequent > 0.8
    assert score[labels == classes].max() < 0.2
    # As suspicious by p alone, but not a confusion that occurs: class 2 labelled 0, once.
    labels[-1] = 0
    once = 1 - by_confusion(p, labels)[0][0, -1]
    assert once < 0.5 < frequent


def test_two_classes_may_be_one_row_and_the_key_decides():
    X = np.random.default_rng(1).standard_normal((2, 80))
    labels = (X[0] > 0).astype(int)

    def run(Y, key):
        return dp.audit(X, Y, key=jax.random.key(key), network=(4,), repeats=1, epochs=3)

    one, two, other = run(labels[None], 0), run(np.eye(2)[:, labels], 0), run(labels[None], 1)
    np.testing.assert_array_equal(one.score, two.score)
    assert not np.array_equal(one.score, other.score)


def test_the_optimizer_the_epochs_and_the_network_are_those_given(monkeypatch):
    seen, sgd, key = [], optax.sgd(0.1), jax.random.key(0)
    monkeypatch.setattr(label_audit, "fit_ensemble", stub(seen))
    X, Y = np.ones((2, 50)), np.eye(2)[:, np.arange(50) % 2]
    dp.audit(X, Y, key=key, network=(7, 3), epochs=9, batch_size=5, optimizer=sgd)
    given = seen[-1]
    assert [layer.W.shape[1:] for layer in given["params"]] == [(7, 2), (3, 7), (2, 3)]
    assert (given["epochs"], given["batch_size"], given["optimizer"]) == (9, 5, sgd)
    dp.audit(X, Y, key=key, network=lambda key: dp.init_params(key, [2, 5, 2], hidden="tanh"))
    given = seen[-1]
    assert given["params"][0].activation.name == "tanh"
    assert given["epochs"] * np.ceil(50 / given["batch_size"]) == pytest.approx(1000, rel=0.01)


def test_networks_that_know_nothing_are_said_to():
    random = np.random.default_rng(2)
    X, Y = random.standard_normal((3, 200)), np.eye(2)[:, random.integers(0, 2, 200)]
    options = {"key": jax.random.key(0), "network": (8,), "repeats": 1, "epochs": 40}
    assert "too little to judge" in str(dp.audit(X, Y, **options))
    Y = np.eye(2)[:, (X[0] > 0).astype(int)]
    found = dp.audit(X, Y, **options)
    right = (found.predictions.argmax(0) == Y.argmax(0)).mean()
    assert right > 0.7
    last = str(found).splitlines()[-1]
    assert f"the networks predict {right:.1%} of the labels; 5" in last
    assert "too little" not in last


def test_a_network_that_diverges_is_an_error():
    X = np.random.default_rng(0).standard_normal((2, 60)).astype(np.float32)
    X[0, 7] = 1e30
    with pytest.raises(dp.TrainingError, match="no finite prediction: a network diverged"):
        dp.audit(
            X, np.eye(2)[:, np.arange(60) % 2], key=jax.random.key(0), optimizer=optax.sgd(0.1)
        )


def test_bad_input():
    X, Y, key = jnp.ones((2, 6)), np.eye(2)[:, [0, 1, 0, 1, 0, 1]], jax.random.key(0)
    with pytest.raises(ValueError, match="Y must be one-hot"):
        dp.audit(X, Y / 2, key=key)
    with pytest.raises(ValueError, match=r"Y must have shape \(n_L, 6\)"):
        dp.audit(X, Y[:, :3], key=key)
    with pytest.raises(ValueError, match="X must hold finite numbers"):
        dp.audit(X.at[0, 0].set(jnp.nan), Y, key=key)
    with pytest.raises(ValueError, match=r"X must have shape \(n_0, m\)"):
        dp.audit(X[0], Y, key=key)
    with pytest.raises(ValueError, match="folds must be at least 2, got 1"):
        dp.audit(X, Y, key=key, folds=1)
    with pytest.raises(ValueError, match="folds must be above 0 and at most the 6 examples, got 7"):
        dp.audit(X, Y, key=key, folds=7)
    with pytest.raises(ValueError, match=r"for class labels: jax\.nn\.one_hot"):
        dp.audit(X, np.arange(6) % 2, key=key)
    with pytest.raises(
        ValueError, match=r"at least two examples of each class.* got one of class 1"
    ):
        dp.audit(X, np.eye(2)[:, [0, 0, 0, 0, 1, 0]], key=key)
    with pytest.raises(ValueError, match="batch_size must be above 0"):
        dp.audit(X, Y, key=key, batch_size=0)
    with pytest.raises(TypeError, match="network must be the units of the hidden layers, got 128"):
        dp.audit(X, Y, key=key, network=128)
    with pytest.raises(ValueError, match="2 outputs with softmax, got 2 and 2 with identity"):
        dp.audit(X, Y, key=key, network=lambda k: dp.init_params(k, [2, 2], output="identity"))
    with pytest.raises(TypeError, match="layers, as each network needs layers of its own; got"):
        dp.audit(X, Y, key=key, network=dp.init_params(key, [2, 2]))
    with pytest.raises(ValueError, match=r"got shape \(1, 6\); for class labels: jax.nn.one_hot"):
        dp.audit(X, np.arange(6)[None] % 3, key=key)
    with pytest.raises(ValueError, match="the examples in X seem to be rows"):
        dp.audit(X.T, Y, key=key)
    with pytest.raises(ValueError, match=r"seem to be rows: pass X\.T and Y\.T"):
        dp.audit(X.T, Y.T, key=key)
    with pytest.raises(TypeError, match="key must be one JAX random key"):
        dp.audit(X, Y, key=0)
