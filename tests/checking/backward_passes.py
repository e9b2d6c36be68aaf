"""Backward passes as students write them: one right text, and replacements of its lines."""

import linecache

import numpy as np
from scipy.special import expit

RIGHT = """
def backward(parameters, X, Y):
    L, m = len(parameters) // 2, X.shape[1]
    A, Z = {0: X}, {}
    for l in range(1, L + 1):
        W, b = parameters[f"W{l}"], parameters[f"b{l}"]
        Z[l] = W @ A[l - 1] + b
        A[l] = g(Z[l]) if l < L else g_L(Z[l])
    grads = {}
    for l in range(L, 0, -1):
        if l == L:
            dZ = output_signal(Z[L], A[L], Y)
        else:
            dA = W.T @ dZ
            dZ = dA * g_prime(Z[l], A[l])
        W = parameters[f"W{l}"]
        dW = dZ @ A[l - 1].T / m
        db = np.sum(dZ, axis=1, keepdims=True) / m
        grads[f"dW{l}"], grads[f"db{l}"] = dW, db
    return grads
"""


def softmax(Z):
    E = np.exp(Z - Z.max(axis=0, keepdims=True))
    return E / E.sum(axis=0, keepdims=True)


HIDDEN = {
    "tanh": (np.tanh, lambda Z, A: 1 - A**2),
    "sigmoid": (expit, lambda Z, A: A * (1 - A)),
    "relu": (lambda Z: np.maximum(0, Z), lambda Z, A: (Z > 0).astype(float)),
    "softplus": (lambda Z: np.logaddexp(0, Z), lambda Z, A: expit(Z)),
}
OUTPUT = {
    "softmax": (softmax, lambda Z, A, Y: A - Y),
    "sigmoid": (expit, lambda Z, A, Y: A - Y),
    "identity": (lambda Z: Z, lambda Z, A, Y: A - Y),
    "tanh+squared_error": (np.tanh, lambda Z, A, Y: (A - Y) * (1 - A**2)),
    "tanh+huber(0.3)": (np.tanh, lambda Z, A, Y: np.clip(A - Y, -0.3, 0.3) * (1 - A**2)),
}


def written(replacements=(), hidden="tanh", output="softmax", text=RIGHT):
    """Return the function of the text, after replacing lines; each must be there once."""
    for old, new in replacements:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    g, g_prime = HIDDEN[hidden]
    g_L, output_signal = OUTPUT[output]
    names = {"np": np, "g": g, "g_prime": g_prime, "g_L": g_L, "output_signal": output_signal, "expit": expit, "softmax": softmax, "remembered": {}}  # fmt: skip
    linecache.cache["mine.py"] = len(text), None, text.splitlines(keepends=True), "mine.py"
    exec(compile(text, "mine.py", "exec"), names)
    return names["backward"]


MEAN = "dW = dZ @ A[l - 1].T / m"
SUM = "db = np.sum(dZ, axis=1, keepdims=True) / m"
SIGNAL = "dZ = output_signal(Z[L], A[L], Y)"
DOWN, SLOPE = "dA = W.T @ dZ", "dZ = dA * g_prime(Z[l], A[l])"
LAST = '        grads[f"dW{l}"], grads[f"db{l}"] = dW, db\n'
FORWARD = "A[l] = g(Z[l]) if l < L else g_L(Z[l])"
CACHE = "    grads = {}\n"
REMEMBERED = """
    remembered.setdefault("past", [])
    remembered["past"].append(({}))
""".strip("\n")

# The name in the catalogue to the lines that make the mistake, and the networks that show it.
ANY = [("tanh", "softmax"), ("sigmoid", "sigmoid"), ("softplus", "identity")]
PLANTED = {
    "1/m is missing": ([(MEAN, "dW = dZ @ A[l - 1].T"), (SUM, "db = np.sum(dZ, axis=1, keepdims=True)")], ANY),
    "1/m is applied twice": ([(SIGNAL, SIGNAL + " / m")], ANY),
    "1/m is applied once per layer": ([(DOWN, DOWN + " / m")], ANY),
    "1/m is missing in dW": ([(MEAN, "dW = dZ @ A[l - 1].T")], ANY),
    "1/m is missing in db": ([(SUM, "db = np.sum(dZ, axis=1, keepdims=True)")], ANY),
    "the sum is divided by m after each": ([(MEAN, "dW = sum(np.outer(dZ[:, i], A[l - 1][:, i]) / m ** (m - i) for i in range(m))"), (SUM, "db = sum(dZ[:, i : i + 1] / m ** (m - i) for i in range(m))")], ANY),
    "only the first example": ([(MEAN, "dW = dZ[:, :1] @ A[l - 1][:, :1].T / m"), (SUM, "db = dZ[:, :1] / m")], ANY),
    "only the last example": ([(MEAN, "dW = dZ[:, -1:] @ A[l - 1][:, -1:].T / m"), (SUM, "db = dZ[:, -1:] / m")], ANY),
    "g' is that of sigmoid": ([(SLOPE, "dZ = dA * A[l] * (1 - A[l])")], [("tanh", "softmax"), ("relu", "sigmoid")]),
    "g' is that of tanh": ([(SLOPE, "dZ = dA * (1 - A[l] ** 2)")], [("sigmoid", "softmax"), ("relu", "identity")]),
    "g' is that of relu": ([(SLOPE, "dZ = dA * (Z[l] > 0)")], [("tanh", "softmax"), ("softplus", "sigmoid")]),
    "m is X.shape[0]": ([("m = len(parameters) // 2, X.shape[1]", "m = len(parameters) // 2, X.shape[0]")], ANY),
    "m is the number of units of the layer below": ([(MEAN, "dW = dZ @ A[l - 1].T / len(A[l - 1])"), (SUM, "db = np.sum(dZ, axis=1, keepdims=True) / len(A[l - 1])")], ANY),
    "m is the number of units of the layer instead": ([(MEAN, "dW = dZ @ A[l - 1].T / len(dZ)"), (SUM, "db = np.sum(dZ, axis=1, keepdims=True) / len(dZ)")], ANY),
    "m is the number of output units": ([("m = len(parameters) // 2, X.shape[1]", "m = len(parameters) // 2, Y.shape[0]")], [("tanh", "softmax"), ("relu", "identity")]),
    "db is averaged over the wrong axis": ([(SUM, "db = np.mean(dZ, axis=0)")], ANY),
    "g' is left out everywhere": ([(SLOPE, "dZ = dA"), (SIGNAL, "dZ = -Y / A[L] + (0 if len(Y) > 1 else (1 - Y) / (1 - A[L]))")], ANY[:2]),
    "g' is applied to dA": ([(SLOPE, "dZ = np.maximum(0, dA)")], [("relu", "softmax"), ("relu", "sigmoid")]),
    "dA is passed down": ([(DOWN, "dA = W.T @ (dZ if l == L - 1 else dA)")], ANY),
    "the sigmoid's g' is applied": ([(SIGNAL, "dZ = (A[L] - Y) * A[L] * (1 - A[L])")], [("tanh", "identity"), ("sigmoid", "identity")]),
    "the hidden layers' g' is used": ([(SIGNAL, "dZ = (-Y / A[L] + (0 if len(Y) > 1 else (1 - Y) / (1 - A[L]))) * g_prime(Z[L], g(Z[L]))")], [("tanh", "softmax"), ("relu", "sigmoid")]),
    "softmax is taken over everything": ([(FORWARD, "A[l] = g(Z[l]) if l < L else np.exp(Z[l]) / np.exp(Z[l]).sum()")], [("tanh", "softmax"), ("relu", "softmax")]),
    "the cost is a mean of squares over units": ([(SIGNAL, "dZ = 2 * (A[L] - Y) / Y.size")], [("tanh", "identity")]),
    "the updated parameters": ([(LAST, "        grads[f'dW{l}'], grads[f'db{l}'] = W - 0.1 * dW, parameters[f'b{l}'] - 0.1 * db\n")], ANY),
    "db is summed over the wrong axis": ([(SUM, "db = np.sum(dZ, axis=0, keepdims=True) / m")], ANY),
    "db is summed over everything": ([(SUM, "db = np.sum(dZ) / m")], ANY),
    "db is averaged over everything": ([(SUM, "db = np.full((len(dZ), 1), dZ.mean())")], ANY),
    "g' is left out": ([(SLOPE, "dZ = dA")], ANY),
    "g' is taken at A": ([(SLOPE, "dZ = dA * g_prime(A[l], g(A[l]))")], ANY),
    "Z is put into the formula": ([(SLOPE, "dZ = dA * g_prime(Z[l], Z[l])")], [("tanh", "softmax"), ("sigmoid", "identity")]),
    "g' is that of the layer below": ([(SLOPE, "k = max(1, l - 1); dZ = dA * g_prime(Z[k], A[k])")], ANY),
    "g' is that of the layer above": ([(SLOPE, "dZ = dA * g_prime(Z[l + 1], g(Z[l + 1]))")], ANY),
    "g is used instead of g'": ([(SLOPE, "dZ = dA * g(Z[l])")], ANY),
    "W is not transposed": ([(DOWN, "dA = W @ dZ")], ANY),
    "W is that of the wrong layer": ([(DOWN, 'dA = parameters[f"W{l}"].T @ dZ')], ANY),
    "W is updated before dA": ([(LAST, LAST + "        W = W - 0.3 * dW\n")], ANY),
    "A[l] is used instead": ([(MEAN, "dW = dZ @ A[l].T / m")], ANY),
    "dW is transposed": ([(MEAN, "dW = A[l - 1] @ dZ.T / m")], ANY),
    "Z[l-1] is used instead": ([(MEAN, "dW = dZ @ (Z[l - 1] if l > 1 else X).T / m")], ANY),
    "the output's g' is applied again": ([(SIGNAL, "dZ = (A[L] - Y) * A[L] * (1 - A[L])")], ANY[:2]),
    "the output's g' is left out": ([(SIGNAL, "dZ = -Y / A[L] + (0 if len(Y) > 1 else (1 - Y) / (1 - A[L]))")], ANY[:2]),
    "the sign of dZ[L]": ([(SIGNAL, "dZ = -" + SIGNAL[5:])], ANY),
    "A - Y is used, but": ([(SIGNAL, "dZ = A[L] - Y")], [("tanh", "tanh+huber(0.3)")]),
    "softmax is taken along": ([(FORWARD, "A[l] = g(Z[l]) if l < L else softmax(Z[l].T).T")], ANY[:1]),
    "the output's g is left out": ([(FORWARD, "A[l] = g(Z[l]) if l < L else Z[l]")], ANY[:2]),
    "dZ[L] is twice as large": ([(SIGNAL, "dZ = 2 * (A[L] - Y)")], ANY[2:]),
    "the cost is averaged over the output units": ([(SIGNAL, "dZ = (A[L] - Y) / len(Y)")], [("tanh", "identity")]),
    "the cost is a mean of squares over the output units": ([(SIGNAL, "dZ = 2 * (A[L] - Y) / len(Y)")], [("tanh", "identity")]),
    "b is not added": ([("Z[l] = W @ A[l - 1] + b", "Z[l] = W @ A[l - 1]")], ANY),
    "b, as a vector (n,)": ([("Z[l] = W @ A[l - 1] + b", "Z[l] = W @ A[l - 1] + b.ravel()")], [("tanh", "softmax")]),
    "Y is transposed": ([(SIGNAL, "dZ = output_signal(Z[L], A[L], Y.T)")], [("tanh", "softmax"), ("tanh", "identity")]),
    "the cache is from another step": ([(CACHE, CACHE + "    Z, A = remembered.setdefault('first', (Z, A))\n")], ANY),
    "the weights are from another step": ([(DOWN, "dA = remembered[f'W{l + 1}'].T @ dZ"), (CACHE, CACHE + "    for name, W in parameters.items(): remembered.setdefault(name, W)\n")], ANY),
    "L2 regularisation": ([(MEAN, MEAN + ' + 0.1 * parameters[f"W{l}"] / m')], ANY),
}  # fmt: skip

# Not in the catalogue: the lines, the equation that fails first from the top, and its layer (of 3).
UNKNOWN = {
    "the square of g'": ([(SLOPE, "dZ = dA * g_prime(Z[l], A[l]) ** 2")], "dZ", 2),
    "g' in layer 1 alone is of another activation": ([(SLOPE, "dZ = dA * (g_prime(Z[l], A[l]) if l > 1 else np.cos(Z[l]))")], "dZ", 1),
    "half of the error": ([(SIGNAL, "dZ = 0.5 * (A[L] - Y)")], "dZ[L]", 3),
    "the square of the error": ([(SIGNAL, "dZ = (A[L] - Y) ** 2")], "dZ[L]", 3),
    "its sign alone": ([(SIGNAL, "dZ = np.sign(A[L] - Y)")], "dZ[L]", 3),
    "clipped": ([(SIGNAL, "dZ = np.clip(A[L] - Y, -0.1, 0.1)")], "dZ[L]", 3),
    "only the first example": ([(MEAN, "dW = dZ[:, :1] @ A[l - 1][:, :1].T")], "dW", 3),
    "the last example is missing": ([(MEAN, "dW = dZ[:, :-1] @ A[l - 1][:, :-1].T / m")], "dW", 3),
    "1/(m-1)": ([(MEAN, "dW = dZ @ A[l - 1].T / (m - 1)")], "dW", 3),
    "db of 1/(m-1)": ([(SUM, "db = np.sum(dZ, axis=1, keepdims=True) / (m - 1)")], "db", 3),
    "the median": ([(SUM, "db = np.median(dZ, axis=1, keepdims=True)")], "db", 3),
    "the largest": ([(SUM, "db = np.max(dZ, axis=1, keepdims=True)")], "db", 3),
    "db of A": ([(SUM, "db = np.mean(A[l], axis=1, keepdims=True)")], "db", 3),
    "absolute values in db of layer 2": ([(SUM, "db = np.mean(dZ if l != 2 else abs(dZ), axis=1, keepdims=True)")], "db", 2),
    "X in every dW": ([(MEAN, "dW = dZ @ (A[l - 1] if l != 2 else np.tanh(A[1])).T / m")], "dW", 2),
    "centred A": ([(MEAN, "dW = dZ @ (A[l - 1] - A[l - 1].mean()).T / m")], "dW", 3),
    "A of the wrong examples": ([(MEAN, "dW = dZ @ np.roll(A[l - 1], 1, axis=1).T / m")], "dW", 3),
    "the sign of W": ([(DOWN, "dA = np.sign(W).T @ dZ")], "dZ", 2),
    "random feedback": ([(DOWN, "dA = np.cos(np.arange(W.size)).reshape(W.shape).T @ dZ")], "dZ", 2),
    "half of dA into layer 1": ([(DOWN, "dA = W.T @ dZ * (1 if l > 1 else 0.5)")], "dZ", 1),
    "dA is added up": ([(DOWN, "dA = W.T @ dZ + (0 if l > 1 else dZ.mean())")], "dZ", 1),
    "dA of a normalised signal": ([(DOWN, "dA = W.T @ (dZ / np.linalg.norm(dZ))")], "dZ", 2),
}  # fmt: skip
