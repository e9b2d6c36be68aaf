# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
# ---

# %% [markdown]
# # 4. Softmax
#
# With several classes, the output is softmax, and the loss is the cross-entropy:
#
#     A = e^Z / Σₖ e^Zₖ        L = -Σₖ yₖ log aₖ
#
# The sum is over the units of one example. First show on paper that dz = a - y: write the loss as log Σₖ e^zₖ - Σₖ yₖ zₖ. Then
# make it safe: e^1000 is infinite, but subtracting the largest z of each example changes nothing in A.

# %%
import numpy as np

import deepprop as dp


# %%
def softmax(Z):
    E = np.exp(Z - Z.max(axis=0, keepdims=True))  #: e^Z, with the largest Z subtracted
    return E / E.sum(axis=0, keepdims=True)  #: each column sums to 1


# %%
def backward(parameters, X, Y):
    W1, b1, W2, b2 = (parameters[name] for name in ("W1", "b1", "W2", "b2"))
    m = X.shape[1]
    A1 = np.tanh(W1 @ X + b1)
    A2 = softmax(W2 @ A1 + b2)
    dZ2 = A2 - Y  #: softmax and its cross-entropy together
    dZ1 = W2.T @ dZ2 * (1 - A1**2)  #: down one layer
    return {
        "dW1": dZ1 @ X.T / m,
        "db1": dZ1.sum(axis=1, keepdims=True) / m,
        "dW2": dZ2 @ A1.T / m,
        "db2": dZ2.sum(axis=1, keepdims=True) / m,
    }


# %% [markdown]
# The report has a note if your softmax is right, but not safe.

# %%
print(dp.check_backward(backward, sizes=[8, 6, 3], hidden="tanh", output="softmax"))
