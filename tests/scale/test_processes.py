"""Several processes that train one network, over loopback: each reads only its own examples."""

import socket
import subprocess
import sys
import textwrap

import jax
import numpy as np
import optax
import pytest

import deepprop as dp
from tests.problems import problem

EACH = """
    import sys
    import jax
    import numpy as np
    import optax

    rank, processes, devices, port, folder, epochs = map(int, sys.argv[1:5] + ["0", sys.argv[6]])
    folder = sys.argv[5]
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", processes, rank, initialization_timeout=60)

    import deepprop as dp

    data = np.load(f"{folder}/part{rank}.npz")  # this process's examples, and no others
    mesh = dp.mesh(model=int(sys.argv[7]))
    X, Y, w = dp.place_examples(mesh, data["X"], data["Y"], data["w"])
    assert X.shape[1] == 96, X.shape
    params = dp.place(dp.load(f"{folder}/model.npz"), mesh)
    fit = dp.fit(
        params, optax.adam(0.01), X, Y, weights=w, epochs=epochs, batch_size=32,
        key=jax.random.key(1), checkpoint=f"{folder}/checkpoint", shards=4,
        validation=dp.Validation(
            X, Y, metrics={"right": lambda A, Y: (A.argmax(0) == Y.argmax(0)).mean()}
        ),
    )
    whole = jax.jit(lambda p: p, out_shardings=jax.NamedSharding(mesh, jax.P()))(fit.params)
    if rank == 0:
        dp.save(f"{folder}/after.npz", whole, **{k: np.asarray(v) for k, v in fit.history.items()})
    jax.distributed.shutdown()
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def train(folder, processes, devices, epochs, model=1):
    """Run so many processes with so many devices each to their end, or kill them after a while."""
    port = free_port()
    command = [sys.executable, "-c", textwrap.dedent(EACH)]
    running = [
        subprocess.Popen(
            [*command, *map(str, (rank, processes, devices, port, folder, epochs, model))],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(processes)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=240)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    for process, output in zip(running, outputs, strict=True):
        assert process.returncode == 0, output[-3000:]


@pytest.mark.thorough
@pytest.mark.usefixtures("x64", "optax_types")
@pytest.mark.parametrize(("processes", "devices", "model"), [(4, 1, 1), (2, 4, 2)], ids=str)
def test_processes_train_as_one(tmp_path, processes, devices, model):
    """And a run that several processes began is gone on with by one, on one device."""
    params, X, Y, w = problem(0, [16, 32, 8, 8], 96, weighted=True)
    dp.save(tmp_path / "model.npz", params)
    for rank, part in enumerate(np.split(np.arange(96), processes)):
        np.savez(tmp_path / f"part{rank}.npz", X=X[:, part], Y=Y[:, part], w=w[part])
    options = {
        "weights": w, "batch_size": 32, "key": jax.random.key(1), "shards": 4,
        "validation": dp.Validation(
            X, Y, metrics={"right": lambda A, Y: (A.argmax(0) == Y.argmax(0)).mean()}
        ),
    }  # fmt: skip
    one = dp.fit(params, optax.adam(0.01), X, Y, epochs=5, **options)
    train(tmp_path, processes, devices, 3, model)
    again, history = dp.load(tmp_path / "after.npz"), dp.load_extra(tmp_path / "after.npz")
    for name in ("cost", "val_cost", "val_right"):
        np.testing.assert_allclose(history[name], one.history[name][:3], rtol=1e-12)
    three = dp.fit(params, optax.adam(0.01), X, Y, epochs=3, **options)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(three.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    further = dp.fit(
        params, optax.adam(0.01), X, Y, epochs=5, checkpoint=tmp_path / "checkpoint", **options
    )
    np.testing.assert_allclose(further.history["cost"], one.history["cost"], rtol=1e-12)
    assert further.history["cost"][0] == history["cost"][0]  # it went on, and did not begin anew
