# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
# ---

# %% [markdown]
# # 5. Layer normalisation
#
# A layer may normalise what enters it. In each column:
#
#     c = a - mean(a)        s = sqrt(mean(c²) + ε)        n = c / s
#
# dn comes from above, and da is what you are after. Two directions of a change nothing in n (almost, because of ε): adding a
# number to all entries, and stretching c. So da has (almost) no component in either direction:
#
#     da = (dn - mean(dn) - n · mean(n · dn)) / s

# %%
import numpy as np

EPSILON = 1e-5


# %%
def normalised(A):
    C = ...  # subtract the mean of each column
    S = ...  # one number per column
    return C / S, S


# %%
def signal_below(A, dN):
    N, S = normalised(A)
    return ...  # three terms, divided by S


# %% [markdown]
# The check compares da with central differences, and with what comes out if a term is missing.


# %%
def check(signal_below):
    rng = np.random.default_rng(0)
    try:
        N, S = normalised(np.array([[1.0, 2.0], [3.0, 6.0]]))
        expected = np.array([[-1.0, -2.0], [1.0, 2.0]]) / np.sqrt([1 + EPSILON, 4 + EPSILON])
        if not np.allclose(N, expected, rtol=1e-7):
            return f"WRONG: normalised gives {N.tolist()} for columns (1, 3), (2, 6)."
        signal_below(np.eye(2), np.eye(2))
    except TypeError as error:
        return f"There is still a blank, or a wrong type: {error}"
    A, dN, h = rng.standard_normal((6, 4)), rng.standard_normal((6, 4)), 1e-5
    right = np.zeros_like(A)
    for place in np.ndindex(A.shape):
        up, down = A.copy(), A.copy()
        up[place] += h
        down[place] -= h
        right[place] = ((normalised(up)[0] - normalised(down)[0]) * dN).sum() / (2 * h)
    dA = np.asarray(signal_below(A.copy(), dN.copy()))
    if dA.shape != A.shape:
        return f"da has the shape {dA.shape}, should have {A.shape}"
    N, S = normalised(A)
    mean, along = dN.mean(axis=0), N * (N * dN).mean(axis=0)
    missing = {
        "mean(dn) is missing: a shift of a changes nothing": (dN - along) / S,
        "n mean(n dn) is missing: a stretch of a changes nothing": (dN - mean) / S,
        "both means are missing": dN / S,
        "the division by s is missing": dN - mean - along,
        "the means are over the wrong axis: each column is an example":
            (dN - dN.mean(1, keepdims=True) - N * (N * dN).mean(1, keepdims=True)) / S,
    }  # fmt: skip
    if np.allclose(dA, right, atol=1e-6):
        return "RIGHT: da agrees with central differences."
    found = [why for why, wrong in missing.items() if np.allclose(dA, wrong, atol=1e-6)]
    worst = np.unravel_index(np.abs(dA - right).argmax(), A.shape)
    said = (
        f"WRONG: da{list(map(int, worst))} is {dA[worst]:.4g}, by differences {right[worst]:.4g}."
    )
    return " ".join([said, *(f"{why.capitalize()}." for why in found)])


print(check(signal_below))
