# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
# ---

# %% [markdown]
# # 1. One unit
#
# A sigmoid unit with the inputs x₁, ..., xₙ and the loss L = -y log a - (1 - y) log(1 - a):
#
#     z = w₁ x₁ + ... + wₙ xₙ + b        a = 1 / (1 + e⁻ᶻ)
#
# Its gradient is three lines. Fill in the blanks, `...`, and run the last cell: it says what is wrong.

# %%
import numpy as np

import deepprop as dp

# %% [markdown]
# Parameters come as on the page of equations: `W1` is (1, n) and `b1` is (1, 1). `X` is (n, m), one example per column, and
# `Y` is (1, m). The cost is the mean of the losses, so its gradient has a factor 1/m.


# %%
def backward(parameters, X, Y):
    W, b = parameters["W1"], parameters["b1"]
    m = X.shape[1]
    Z = W @ X + b  #: W times X, plus b
    A = 1 / (1 + np.exp(-Z))  #: the sigmoid of Z
    dZ = A - Y  #: (1, m): the derivative of each example's own loss with respect to its z
    dW = dZ @ X.T / m  #: (1, n): the mean over the examples of dz times x
    db = np.sum(dZ, axis=1, keepdims=True) / m  #: (1, 1): the mean over the examples of dz
    return {"dW1": dW, "db1": db}


# %%
print(dp.check_backward(backward, sizes=[6, 1], output="sigmoid"))
