"""What the cache and the error signals give.

Column i of dZ[l] is the derivative of example i's own loss, and column i of A[l-1] is what entered
layer l. The gradient of one example is an outer product of the two, so sums, norms, products and
factors of single examples cost a few matrix products.
"""

from deepprop.signals.attribution import deep_lift, input_gradients, integrated_gradients
from deepprop.signals.clipping import clipped_backward
from deepprop.signals.curvature import Curvature, ekfac
from deepprop.signals.diagnosis import Diagnosis, diagnosis_of, findings
from deepprop.signals.fisher import Factors, kfac_factors, sampled_targets
from deepprop.signals.gauss_newton import gauss_newton_diagonal, gauss_newton_product
from deepprop.signals.layer_health import diagnose
from deepprop.signals.moments import (
    NoiseScale,
    gradient_noise_scale,
    gradient_variance,
    squared_gradients,
)
from deepprop.signals.per_example import (
    per_example_gradients,
    per_example_norms,
    per_example_products,
)
from deepprop.signals.posterior import Posterior, laplace
from deepprop.signals.tangent_kernel import neural_tangent_kernel
from deepprop.signals.training_influence import influence, tracin

__all__ = [
    "Curvature",
    "Diagnosis",
    "Factors",
    "NoiseScale",
    "Posterior",
    "clipped_backward",
    "deep_lift",
    "diagnose",
    "diagnosis_of",
    "ekfac",
    "findings",
    "gauss_newton_diagonal",
    "gauss_newton_product",
    "gradient_noise_scale",
    "gradient_variance",
    "influence",
    "input_gradients",
    "integrated_gradients",
    "kfac_factors",
    "laplace",
    "neural_tangent_kernel",
    "per_example_gradients",
    "per_example_norms",
    "per_example_products",
    "sampled_targets",
    "squared_gradients",
    "tracin",
]
