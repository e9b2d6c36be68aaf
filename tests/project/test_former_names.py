"""The former names of 0.1.0 still work and warn, and its files can still be read."""

import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import deepprop as dp
from deepprop.command.cli import main

KEY = jax.random.key(0)
SIZES = [2, 4, 4, 4, 1]


@pytest.fixture(autouse=True)
def _types(optax_types):
    return optax_types


def narrow(**how):
    params = dp.init_params(KEY, SIZES, hidden="tanh", output="sigmoid", **how)
    return params if how else dp.with_compute_dtype(params, "bfloat16")


def test_products_is_compute_dtype():
    with pytest.warns(DeprecationWarning, match="the argument products is now compute_dtype"):
        params = narrow(products="bfloat16")
    with pytest.warns(DeprecationWarning, match="with_products is now with_compute_dtype"):
        same = dp.with_products(dp.with_compute_dtype(params, None), "bfloat16")
    with pytest.warns(DeprecationWarning, match="the argument products is now compute_dtype"):
        layer = dp.Layer(params[0].W, params[0].b, "tanh", products=jnp.dtype("bfloat16"))
    with pytest.warns(DeprecationWarning, match="the attribute products is now compute_dtype"):
        assert layer.products == jnp.bfloat16
    assert layer.compute_dtype == jnp.bfloat16
    assert jax.tree.structure(params) == jax.tree.structure(same) == jax.tree.structure(narrow())


def untimed(text):
    return re.sub(r"[\d.]+ s of", "", text)


def test_the_option_products_is_compute_dtype(capsys):
    options = ["train", "--hidden", "4", "--epochs", "1", "--no-check"]
    assert main([*options, "--compute-dtype", "bfloat16"]) == 0
    expected = capsys.readouterr()
    assert main([*options, "--products", "bfloat16"]) == 0
    found = capsys.readouterr()
    assert found.err == "--products is now --compute-dtype\n" + expected.err
    assert re.sub(r"[\d.]+ s of", "", found.out) == re.sub(r"[\d.]+ s of", "", expected.out)


def test_load_data_moved():
    from deepprop.command.data import load_data as moved

    with pytest.warns(DeprecationWarning, match=r"is now deepprop\.command\.data\.load_data"):
        from deepprop.data import load_data
    assert load_data is moved


def test_a_checkpoint_of_0_1_0_resumes(tmp_path):
    shutil.unpack_archive(Path(__file__).parents[1] / "data" / "0.1.0-checkpoint.zip", tmp_path)
    X = jax.random.normal(jax.random.key(1), (2, 24))
    Y = (X[:1] * X[1:] > 0) * 1.0
    with pytest.warns(DeprecationWarning, match="is now .* of dp") as warned:
        fit = dp.fit(
            dp.stack(narrow(), 2), optax.adam(0.05), X, Y, epochs=5, batch_size=8,
            key=jax.random.key(2), checkpoint=tmp_path, record=dp.diagnose, record_every=2,
            patience=3, validation=(X[:, :8], Y[:, :8]),
            metrics={"error": lambda A, Y: jnp.mean(abs(A - Y))},
        )  # fmt: skip
    assert sorted(str(w.message) for w in warned) == [
        "the argument metrics is now metrics of dp.Validation",
        "the argument patience is now patience of dp.Validation",
        "the argument record_every is now every of dp.Record",
    ]
    of_file = [0.68415815, 0.57492161, 0.53906721]  # as 0.1.0 printed them
    np.testing.assert_allclose(fit.history["cost"][:3], of_file, rtol=1e-7)
    assert len(fit.history["cost"]) > 3
    assert fit.history["cost"][3] < of_file[2]


@pytest.mark.parametrize(
    ("former", "message"),
    [
        ({"patience": 3}, "a validation set is needed for patience"),
        ({"metrics": {"m": abs}}, "a validation set is needed for metrics"),
    ],
)
def test_former_arguments_of_a_validation_set_need_one(former, message):
    X = jnp.ones((2, 8))
    with pytest.warns(DeprecationWarning, match="is now"), pytest.raises(ValueError, match=message):
        dp.fit(narrow(), optax.adam(0.05), X, X[:1], epochs=1, batch_size=8, key=KEY, **former)


def test_checkpoint_every_is_every_of_a_checkpoint(tmp_path):
    X = jnp.ones((2, 8))
    with pytest.warns(DeprecationWarning, match="is now every of dp.Checkpoint"):
        dp.fit_batches(
            narrow(), optax.sgd(0.1), [(X, X[:1])], epochs=5, checkpoint=tmp_path,
            checkpoint_every=3,
        )  # fmt: skip
    assert sorted(p.name for p in tmp_path.iterdir()) == ["3", "5"]
