"""A training process that is killed."""

import random
import signal
import subprocess
import sys
import time
from itertools import islice

import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("optax_types")


PROGRAM = """
import sys
import jax, numpy as np, optax
import deepprop as dp

rng = np.random.default_rng(0)
X, Y = rng.standard_normal((20, 200)), np.eye(5)[:, rng.integers(5, size=200)]
params = dp.init_params(jax.random.key(0), [20, 64, 64, 5])
fit = dp.fit(
    params, optax.adam(0.01), X, Y, epochs=int(sys.argv[2]), batch_size=20, key=jax.random.key(1),
    validation=dp.Validation(X[:, :50], Y[:, :50], patience=10**6), checkpoint=sys.argv[3] or None,
    callbacks=[lambda epoch, row, params: print(epoch, flush=True)],
)
dp.save(sys.argv[1], fit.params, history=fit.history["cost"])
"""


@pytest.mark.thorough
def test_a_killed_process_loses_nothing(tmp_path, request):
    """SIGKILL at random moments; --kills=100 for more of them."""
    kills, rng, last = request.config.getoption("--kills"), random.Random(0), 0
    epochs = 25 * kills + 10  # more than the processes that are killed get through

    def process(name, folder):
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / name), str(epochs), str(folder)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    for _ in range(kills):
        with process("never.npz", tmp_path / "checkpoints") as killed:
            lines = list(islice(killed.stdout, rng.randrange(1, 20)))
            time.sleep(rng.uniform(0, 0.15))
            killed.kill()
            begun, *_, ended = map(int, [*lines, *lines, *killed.stdout])
        assert killed.returncode == -signal.SIGKILL
        assert begun >= last - 1  # an epoch is printed before it is written; the one before it is
        last = ended
    with process("resumed.npz", tmp_path / "checkpoints") as resumed:
        assert int(resumed.stdout.readline()) >= last - 1
        resumed.communicate(timeout=600)
    with process("whole.npz", "") as whole:
        whole.communicate(timeout=600)
    assert (resumed.returncode, whole.returncode) == (0, 0)
    resumed, whole = (dict(np.load(tmp_path / name)) for name in ("resumed.npz", "whole.npz"))
    assert whole["history"].shape == (epochs,)
    for name, array in whole.items():
        np.testing.assert_array_equal(resumed[name], array)
