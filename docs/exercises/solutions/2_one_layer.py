# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
# ---

# %% [markdown]
# # 2. One hidden layer
#
# Now a hidden layer of tanh units below an output without activation, and half the squared error as the loss. The signal
# goes down one layer:
#
#     dZ[2] = A[2] - Y
#     dA[1] = W[2]ᵀ dZ[2]
#     dZ[1] = dA[1] * g'(Z[1])        tanh' = 1 - A²

# %%
import numpy as np

import deepprop as dp


# %%
def backward(parameters, X, Y):
    W1, b1, W2, b2 = (parameters[name] for name in ("W1", "b1", "W2", "b2"))
    m = X.shape[1]
    Z1 = W1 @ X + b1
    A1 = np.tanh(Z1)
    Z2 = W2 @ A1 + b2
    A2 = Z2
    dZ2 = A2 - Y  #: where the signal starts
    dA1 = W2.T @ dZ2  #: what reaches the outputs of layer 1
    dZ1 = dA1 * (1 - A1**2)  #: and what reaches their sums
    return {
        "dW2": dZ2 @ A1.T / m,  #: the signal of layer 2, times what enters layer 2
        "db2": dZ2.sum(axis=1, keepdims=True) / m,  #: a column
        "dW1": dZ1 @ X.T / m,  #: the signal of layer 1, times what enters layer 1
        "db1": dZ1.sum(axis=1, keepdims=True) / m,  #: a column
    }


# %%
print(dp.check_backward(backward, sizes=[8, 6, 3], hidden="tanh", output="identity"))
