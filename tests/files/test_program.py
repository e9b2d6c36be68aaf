"""Exported programs, and what a process without deepprop computes with them."""

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deepprop as dp
from deepprop.command.cli import main
from deepprop.files.program import PLATFORMS
from tests.problems import HIDDEN, OUTPUTS, problem, thorough

SIZES = (1, 2, 7, 100)
SHIFT, SCALE = np.array([1000.0, -20.0, 3.0, 0.0]), np.array([250.0, 4.0, 0.1, 1.0])
ALONE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "deepprop":
            raise ImportError("deepprop is not to be had here")

sys.meta_path.insert(0, Refuse())
try:
    import deepprop
except ImportError:
    pass
else:
    sys.exit("deepprop can be imported")

from pathlib import Path
import jax, numpy as np

for file in sorted(Path(sys.argv[1]).glob("*.jax")):
    network = jax.export.deserialize(file.read_bytes())
    with np.load(file.with_suffix(".npz")) as X:
        with jax.enable_x64(bool(network.in_avals[0].dtype == np.float64)):
            A = {name: np.asarray(jax.jit(network.call)(X[name])) for name in X.files}
    np.savez(file.with_suffix(".answers.npz"), **A)
assert "deepprop" not in sys.modules
"""


def alone(folder):
    """Run every program in the folder on the inputs next to it, in a process without deepprop."""
    run = subprocess.run(
        [sys.executable, "-c", ALONE, str(folder)],
        cwd=folder, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]


def network_of(hidden="tanh", output="softmax", dtype=np.float32):
    hidden = [hidden, hidden] if isinstance(hidden, str) else hidden
    return problem(1, [4, *[6] * len(hidden), 3], 1, hidden, output, dtype=dtype)[0]


def deep_network(**options):
    sizes, how = [4, *[6] * 7, 3], {"residual": True, "stack": True, **options}
    return dp.stack(dp.init_params(jax.random.key(3), sizes, hidden="gelu", **how), "sqrt")


def own_network():
    cube = dp.Activation("cube", lambda Z: Z * jnp.abs(jnp.sin(Z)) ** 3, lambda Z, A: Z)
    own = dp.Output("own", lambda Z: jnp.sort(Z, axis=-2), lambda Z, Y: Z, lambda Z, A, Y: A)
    return dp.init_params(jax.random.key(2), [4, 6, 3], hidden=cube, output=own)


NETWORKS = {
    "every activation": lambda: network_of(HIDDEN),
    **{name: (lambda name=name: network_of(output=name)) for name in OUTPUTS},
    "no hidden layer": lambda: network_of([]),
    "own": own_network,
    "bfloat16": lambda: network_of(HIDDEN, dtype=jnp.bfloat16),
    "float16": lambda: network_of(HIDDEN, dtype=np.float16),
    "float64": lambda: network_of(HIDDEN, dtype=np.float64),
    "stack": deep_network,
    "stack of bfloat16 products": lambda: deep_network(compute_dtype="bfloat16"),
    "stack of float16 products": lambda: deep_network(compute_dtype="float16"),
    "normalised, with dropout": lambda: dp.init_params(
        jax.random.key(4), [4, 6, 6, 3], normalize=["rms", "layer", "layer"], dropout=0.3
    ),
    "scaled": network_of,
    "scaled bfloat16": lambda: network_of(dtype=jnp.bfloat16),
}


def sizes_of(name):
    """Return the batch sizes: all for one network of each kind, as each is compiled twice."""
    return SIZES if name in ("softmax", "own", "bfloat16", "float64", "scaled") else (7,)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return a function of a name: it exports that network once and returns it with its file."""
    folder = tmp_path_factory.mktemp("exported")

    @cache
    def of(name):
        with jax.enable_x64("float64" in name):
            params = NETWORKS[name]()
        scaling = (SHIFT, SCALE) if "scaled" in name else None
        dp.export(folder / f"{name}.jax", params, scaling=scaling)
        return params, folder / f"{name}.jax"

    return of


def inputs_of(name):
    """Return X for each size, by size, in the type that the program takes."""
    rng, dtype = np.random.default_rng(0), np.float64 if "float64" in name else np.float32
    X = {str(m): rng.standard_normal((4, m)) for m in sizes_of(name)}
    if "scaled" in name:
        X = {m: X[m] * SCALE[:, None] + SHIFT[:, None] for m in X}
    return {m: X[m].astype(dtype) for m in X}


def check_answers(name, params, A):
    """Compare up to rounding; products in bfloat16 and float16 may round differently."""
    eps = float(jnp.finfo(params[0].compute_dtype or params[0].W.dtype).eps)
    X = inputs_of(name)
    assert list(A) == list(X) == [str(m) for m in sizes_of(name)]
    for m in A:
        x = X[m] if "scaled" not in name else (X[m] - SHIFT[:, None]) / SCALE[:, None]
        with jax.enable_x64("float64" in name):
            expected = jax.jit(dp.predict)(params, x.astype(X[m].dtype))
        assert A[m].dtype == expected.dtype
        np.testing.assert_allclose(A[m], expected, rtol=30 * eps, atol=30 * eps)


def read(path):
    return jax.export.deserialize(Path(path).read_bytes())


@pytest.mark.ordinary(2)
@pytest.mark.parametrize("name", NETWORKS)
def test_one_program_predicts_for_batches_of_every_size(exported, name):
    params, file = exported(name)
    with jax.enable_x64("float64" in name):
        A = {m: np.asarray(jax.jit(read(file).call)(X)) for m, X in inputs_of(name).items()}
    check_answers(name, params, A)


@pytest.mark.thorough
def test_the_programs_run_where_there_is_no_deepprop(exported):
    for name in NETWORKS:
        _, file = exported(name)
        np.savez(file.with_suffix(".npz"), **inputs_of(name))
    alone(file.parent)
    for name in NETWORKS:
        params, file = exported(name)
        with np.load(file.with_suffix(".answers.npz")) as answers:
            check_answers(name, params, dict(answers))


@pytest.mark.ordinary(5)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_program_is_stablehlo_for_every_platform(exported, name):
    """Its only custom call checks that m is at least 1, and is removed before compilation."""
    network = read(exported(name)[1])
    assert network.platforms == PLATFORMS == ("cpu", "cuda", "rocm", "tpu")
    assert network.fun_name == "predict"
    text = network.mlir_module()
    operations = set(re.findall(r'^ *(?:%[\w:, %]+ = )?"?([a-z]\w*(?:\.\w+)*)"?[ (]', text, re.M))
    assert {"stablehlo.dot_general", "stablehlo.add", "call", "return"} <= operations
    others = {operation for operation in operations if not operation.startswith("stablehlo.")}
    looped = {"cond", "func.call"} if "stack" in name else set()  # of stablehlo.while
    assert others == {"module", "func.func", "call", "return"} | looped
    assert ("stablehlo.while" in operations) == bool(looped)
    assert text.count("custom_call") == text.count("stablehlo.custom_call @shape_assertion") == 1


def test_products_stay_narrow_except_on_a_cpu(exported):
    text = read(exported("bfloat16")[1]).mlir_module()
    types = re.findall(r"stablehlo.dot_general .* : \(tensor<\?x\d+x(\w+)>, .*\) -> .*xf32>", text)
    assert set(types) == {"f32", "bf16"}


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.ones((5, 2), np.float32), r"expected \(4, m\) and called with \(5, 2\)"),
        (np.ones((2, 4), np.float32), r"expected \(4, m\) and called with \(2, 4\)"),
        (np.ones(4, np.float32), r"expected \(4, m\) and called with \(4,\)"),
        (np.ones((4, 0), np.float32), r"Expected value >= 1 for dimension variable 'm'"),
        (np.ones((4, 2), np.uint8), r"expected float32 and called with uint8"),
        (jnp.ones((4, 2), jnp.bfloat16), r"expected float32 and called with bfloat16"),
    ],
    ids=["n_0", "rows", "rank", "no example", "integers", "bfloat16"],
)
def test_other_inputs_are_an_error(exported, X, message):
    with pytest.raises(ValueError, match=message):
        read(exported("softmax")[1]).call(X)


def test_float64_is_cast_if_x64_is_off_and_refused_if_it_is_on(exported):
    network, X = read(exported("softmax")[1]), np.ones((4, 2))
    assert network.call(X).dtype == np.float32
    with jax.enable_x64(True), pytest.raises(ValueError, match="expected float32 and called with"):
        network.call(X)
    with pytest.raises(ValueError, match="expected float64 and called with float32"):
        read(exported("float64")[1]).call(X)


def test_the_file_is_as_large_as_the_parameters_and_has_no_source_path(tmp_path):
    for dtype in (jnp.float32, jnp.bfloat16):  # the latter has a product for each kind of platform
        params = dp.init_params(jax.random.key(0), [512, 512, 10], hidden="gelu", dtype=dtype)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        before = jax.config.jax_traceback_in_locations_limit
        dp.export(tmp_path / "a.jax", params)
        dp.export(tmp_path / "b.jax", params)
        content = (tmp_path / "a.jax").read_bytes()
        assert size < len(content) < size + 20_000
        assert content == (tmp_path / "b.jax").read_bytes()
        assert b".py" not in content
        assert os.fsencode(Path.home()) + b"/" not in content
        assert jax.config.jax_traceback_in_locations_limit == before != 0


def test_only_some_platforms(tmp_path):
    dp.export(tmp_path / "tpu.jax", network_of(), platforms=["tpu"])
    network = read(tmp_path / "tpu.jax")
    assert network.platforms == ("tpu",)
    with pytest.raises(ValueError, match=r"exported for platforms '\('tpu',\)' but it is used on"):
        network.call(np.ones((4, 2), np.float32))


def called_back(Z):
    return jax.pure_callback(lambda Z: Z, jax.ShapeDtypeStruct(Z.shape, Z.dtype), Z)


def giant():
    """Return a network of 2 GiB that takes no memory."""
    layer = (jax.ShapeDtypeStruct((2**15, 2**14), np.float32), jax.ShapeDtypeStruct((2**15, 1), np.float32))  # fmt: skip
    return (dp.Layer(*layer, dp.output("identity")),)


CALLBACK = dp.Activation("own", called_back, lambda Z, A: A)
BAD = {
    "a platform that is none": (lambda: {"platforms": ["cpu", "gpu"]}, ValueError, r"platforms must be one or more of cpu, cuda, rocm, tpu, each once, got \['cpu', 'gpu'\]"),
    "one platform twice": (lambda: {"platforms": ("cpu", "cpu")}, ValueError, r"each once, got \('cpu', 'cpu'\)"),
    "no platform": (lambda: {"platforms": ()}, ValueError, r"platforms must be one or more of .*got \(\)"),
    "a name for platforms": (lambda: {"platforms": "cpu"}, TypeError, r"platforms must be a sequence of names, got 'cpu'"),
    "None for platforms": (lambda: {"platforms": None}, TypeError, r"platforms must be a sequence of names, got None"),
    "no platform's name": (lambda: {"platforms": [["cpu"]]}, ValueError, r"platforms must be one or more of .*got \[\['cpu'\]\]"),
    "a list of layers": (lambda: {"params": list(network_of())}, TypeError, r"params must be a tuple of dp.Layer, got list"),
    "arrays for layers": (lambda: {"params": (np.ones((3, 4)),)}, TypeError, r"params must be a tuple of dp.Layer with arrays"),
    "too much for one file": (lambda: {"params": giant()}, ValueError, r"params must take at most 2,146,435,072 bytes in one file, got 2,147,614,720"),
    "an activation that calls Python": (lambda: {"params": network_of([CALLBACK])}, ValueError, r"params must have activations that jax.export can lower for cpu, cuda, rocm, tpu: NotImplementedError: .*callback"),
    "a scale alone": (lambda: {"scaling": np.ones(4)}, TypeError, r"scaling must be a pair \(shift, scale\)"),
    "a scaling of three": (lambda: {"scaling": (1, 2, 3)}, TypeError, r"scaling must be a pair \(shift, scale\), got \(1, 2, 3\)"),
    "a shift of another shape": (lambda: {"scaling": (np.ones(3), SCALE)}, ValueError, r"scaling\[0\] must be 4 numbers, one per input"),
    "a scale in a column": (lambda: {"scaling": (SHIFT, SCALE[:, None])}, ValueError, r"scaling\[1\] must be 4 numbers"),
    "a scale of text": (lambda: {"scaling": (SHIFT, "1234")}, TypeError, r"scaling\[1\] must be an array of real numbers"),
    "a shift of nan": (lambda: {"scaling": (SHIFT * np.nan, SCALE)}, ValueError, r"scaling\[0\] must be .* all finite in float32"),
    "a scale of 0": (lambda: {"scaling": (SHIFT, SHIFT)}, ValueError, r"scaling\[1\] must have no 0 in float32"),
    "a scale that float32 has not": (lambda: {"scaling": (SHIFT, SCALE * 1e-99)}, ValueError, r"scaling\[1\] must have no 0 in float32"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_named_and_keep_the_old_file(tmp_path, case):
    make, error, message = BAD[case]
    (tmp_path / "network.jax").write_text("kept")
    with pytest.raises(error, match=message):
        dp.export(tmp_path / "network.jax", **{"params": network_of(), **make()})
    assert (tmp_path / "network.jax").read_text() == "kept"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_is_complete_or_absent(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError) as caught:
        dp.export(tmp_path / "no" / "network.jax", network_of())
    assert caught.value.filename == str(tmp_path / "no" / "network.jax")
    with pytest.raises(FileNotFoundError):  # before the work, in which this would fail
        dp.export(tmp_path / "no" / "network.jax", network_of([CALLBACK]))

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        dp.export(tmp_path / "network.jax", network_of())
    assert not list(tmp_path.iterdir())


def test_without_flatbuffers(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(ImportError, match="pip install flatbuffers"):
        dp.export(tmp_path / "network.jax", network_of())
    assert not list(tmp_path.iterdir())


def command(capsys, *argv):
    status = main(list(map(str, argv)))
    out, err = capsys.readouterr()
    return status, out, err


@pytest.mark.thorough
@pytest.mark.usefixtures("optax_types")
@pytest.mark.parametrize("data", [thorough("digits"), "digits, standardized", "numbers"])
def test_deepprop_export_and_predict_agree(tmp_path, capsys, data):
    """Both take raw inputs; the model file has the scaling."""
    if data == "numbers":
        rng = np.random.default_rng(0)
        x = (rng.standard_normal((60, 5)) * 40 + 500).astype(np.float32)
        np.savez(tmp_path / "data.npz", X=x, y=x @ rng.standard_normal(5) / 100)
        file = tmp_path / "data.npz"
    else:
        file = Path(dp.__file__).parent / "digits" / "digits.npz"
    model, program, csv = (tmp_path / name for name in ("model.npz", "it.jax", "answers.csv"))
    options = ["--hidden", "16", "--epochs", 2, "--no-check", "--save", model, "--data", file]
    options += [] if data == "digits" else ["--standardize"]
    assert command(capsys, "train", *options)[0] == 0
    status, out, _ = command(capsys, "export", model, "--out", program)
    assert status == 0
    assert f"saved      {program}" in out
    assert command(capsys, "predict", model, "--data", file, "--out", csv)[0] == 0
    with np.load(file) as arrays:
        x = {name.lower(): arrays[name] for name in arrays.files}["x"]
    np.savez(tmp_path / "it.npz", A=x.reshape(len(x), -1).T.astype(np.float32))
    alone(tmp_path)
    A = np.load(tmp_path / "it.answers.npz")["A"]
    answers = np.loadtxt(csv)
    if data == "numbers":
        assert "takes      float32 (5, m), one example per column, not scaled" in out
        assert "returns    float32 (1, m)\n" in out
        np.testing.assert_allclose(A[0], answers, rtol=1e-5, atol=1e-5)
    else:
        assert (
            "returns    float32 (10, m), one row per class: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9\n" in out
        )
        assert len(answers) == 1797
        np.testing.assert_array_equal(np.argmax(A, axis=0), answers)


def test_bad_options_of_export_get_one_clear_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dp.save("model.npz", network_of())
    for argv, message in {
        ("none.npz", "--out", "x"): "No such file or directory: 'none.npz'",
        ("model.npz", "--out", "no/x"): "No such file or directory: 'no/x'",
        ("model.npz", "--out", "x", "--platforms", "cpu,gpu"): "platforms must be one or more of",
        ("model.npz", "--out", "./model.npz"): "MODEL.npz and --out must be two files",
    }.items():
        status, out, err = command(capsys, "export", *argv)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert message in err
    assert dp.load("model.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["model.npz"]


def test_an_activation_of_your_own_and_one_platform_on_the_command_line(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ours.py").write_text(
        "import jax.numpy as jnp, deepprop as dp\n"
        "sine = dp.Activation('sine', jnp.sin, lambda Z, A: jnp.cos(Z))\n"
    )
    try:
        sine = dp.Activation("sine", jnp.sin, lambda Z, A: jnp.cos(Z))
        dp.save("model.npz", dp.init_params(jax.random.key(0), [4, 5, 3], hidden=sine))
        argv = ["--out", "x.jax", "--own", "ours:sine", "--platforms", "cuda,tpu"]
        assert command(capsys, "export", "model.npz", *argv)[0] == 0
    finally:
        sys.modules.pop("ours", None)
    assert read("x.jax").platforms == ("cuda", "tpu")
    assert "stablehlo.sine" in read("x.jax").mlir_module()
