# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
# ---

# %% [markdown]
# # 3. L layers
#
# The same for any number of layers, in two loops. The hidden layers have relu, the output is a sigmoid.
#
#     dZ[l] = W[l+1]ᵀ dZ[l+1] * g[l]'(Z[l])
#
# If you also return dZ1, dA1, Z1, A1, ..., they are checked, too.

# %%
import numpy as np

import deepprop as dp


# %%
def forward(parameters, X):
    L = len(parameters) // 2
    Z, A = {}, {0: X}
    for l in range(1, L + 1):
        Z[l] = ...  # of layer l
        A[l] = np.maximum(0, Z[l]) if l < L else 1 / (1 + np.exp(-Z[l]))
    return Z, A


# %%
def backward(parameters, X, Y):
    L, m = len(parameters) // 2, X.shape[1]
    Z, A = forward(parameters, X)
    grads = {}
    for l in range(L, 0, -1):
        if l == L:
            dZ = ...  # of the output
        else:
            dA = ...  # dZ is still that of layer l + 1
            dZ = ...  # relu' is 1 above 0 and 0 elsewhere
        grads[f"dW{l}"] = ...  # like W[l]
        grads[f"db{l}"] = ...  # like b[l]
    return grads


# %%
print(dp.check_backward(backward, hidden="relu", output="sigmoid"))
