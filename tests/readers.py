"""All that reads (cache, dZ), in one table: every test that must cover all of it runs over this."""

import jax

import deepprop as dp

# By the function's name, with a note where a function has several entries: of the cache, dZ, Y,
# weights and a direction V like the parameters.
READERS = {
    "gradients": lambda c, dZ, Y, w, V: dp.gradients(c, dZ, w),
    "per_example_norms": lambda c, dZ, Y, w, V: dp.per_example_norms(c, dZ),
    "per_example_norms, per layer": lambda c, dZ, Y, w, V: dp.per_example_norms(c, dZ, per_layer=True),
    "per_example_products": lambda c, dZ, Y, w, V: dp.per_example_products(c, dZ, c, dZ),
    "per_example_gradients": lambda c, dZ, Y, w, V: dp.per_example_gradients(c, dZ),
    "clipped_backward": lambda c, dZ, Y, w, V: dp.clipped_backward(c, Y, 0.5, weights=w),
    "clipped_backward, per layer": lambda c, dZ, Y, w, V: dp.clipped_backward(
        c, Y, [0.1 * l for l in range(1, 1 + len(dp.unstack(c.params)))]
    ),
    "clipped_backward, gamma": lambda c, dZ, Y, w, V: dp.clipped_backward(c, Y, 0.5, gamma=0.1),
    "squared_gradients": lambda c, dZ, Y, w, V: dp.squared_gradients(c, dZ, w),
    "gradient_variance": lambda c, dZ, Y, w, V: dp.gradient_variance(c, dZ, w),
    "gradient_noise_scale": lambda c, dZ, Y, w, V: dp.gradient_noise_scale(c, dZ),
    "kfac_factors": lambda c, dZ, Y, w, V: dp.kfac_factors(c, dZ, w),
    "gauss_newton_diagonal": lambda c, dZ, Y, w, V: dp.gauss_newton_diagonal(c, w),
    "gauss_newton_product": lambda c, dZ, Y, w, V: dp.gauss_newton_product(c, V, w),
    "neural_tangent_kernel": lambda c, dZ, Y, w, V: dp.neural_tangent_kernel(c),
    "neural_tangent_kernel, A": lambda c, dZ, Y, w, V: dp.neural_tangent_kernel(c, of="A"),
    "input_signal": lambda c, dZ, Y, w, V: dp.input_signal(c, dZ),
    "jacobian": lambda c, dZ, Y, w, V: dp.jacobian(c),
    "diagnose": lambda c, dZ, Y, w, V: dp.diagnose(c, dZ, V),
}  # fmt: skip


def read(cache, Y, w, names=READERS):
    """Return what the readers with these names return, by name, with V a tenth of the parameters."""
    dZ, V = dp.error_signals(cache, Y), jax.tree.map(lambda p: 0.1 * p, cache.params)
    return {name: READERS[name](cache, dZ, Y, w, V) for name in names}
