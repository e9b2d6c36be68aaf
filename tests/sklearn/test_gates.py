"""scikit-learn's own tests: those for any estimator, and those of its MLP, run on ours."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import sklearn.neural_network
from sklearn.utils.estimator_checks import parametrize_with_checks

from deepprop.sklearn import MLPClassifier, MLPRegressor

# They read or drive private attributes of scikit-learn's MLP.
PRIVATE = {
    "test_fit",
    "test_gradient",
    "test_learning_rate_warmstart",
    "test_adaptive_learning_rate",
}
THEIRS = Path(sklearn.neural_network.__file__).parent / "tests" / "test_mlp.py"
CONFTEST = "import pytest\n\n\n@pytest.fixture\ndef global_random_seed():\n    return 42\n"


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks([MLPClassifier(max_iter=100), MLPRegressor(max_iter=100)])
def test_the_checks_for_any_estimator(estimator, check):
    check(estimator)


@pytest.mark.thorough
def test_the_tests_of_their_mlp(tmp_path):
    """All pass except for those in PRIVATE, with the import changed and nothing else."""
    text = THEIRS.read_text()
    line = "from sklearn.neural_network import MLPClassifier, MLPRegressor"
    assert text.count(line) == 1
    (tmp_path / "test_mlp.py").write_text(
        text.replace(line, line.replace("sklearn.neural_network", "deepprop.sklearn"))
    )
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path), "--tb=line", "-rf"],
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir or ""},
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    failed = set(re.findall(r"^FAILED \S+::(\w+)", done.stdout, re.M))
    assert failed <= PRIVATE, done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 50, done.stdout
