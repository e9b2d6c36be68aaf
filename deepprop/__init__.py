"""deepprop: deep feed-forward networks in JAX, with the backward pass written out by hand."""

from deepprop.accountant import epsilon_spent, noise_for
from deepprop.activations import Activation, activation
from deepprop.backprop import error_signals, gradients, manual_backward
from deepprop.clipping import clipped_backward
from deepprop.costs import Cost, Output, output
from deepprop.curvature import Factors, kfac_factors, sampled_targets
from deepprop.devices import data_parallel, mesh, place, place_examples
from deepprop.diagnose import diagnose
from deepprop.diagnosis import Diagnosis, diagnosis_of, findings
from deepprop.ensemble import fit_ensemble
from deepprop.examples import balanced_weights
from deepprop.export import export
from deepprop.fit import fit, fit_batches
from deepprop.gauss_newton import gauss_newton_diagonal, gauss_newton_product
from deepprop.gradient_check import GradientError, GradientReport, check_gradients
from deepprop.in_backward import in_backward
from deepprop.kfac import kfac, scale_by_kfac
from deepprop.layers import Cache, Layer
from deepprop.loop import Fit, TrainingError
from deepprop.memory import MemoryPlan, memory_plan
from deepprop.mixed_precision import with_products
from deepprop.model_file import load, load_extra, save
from deepprop.moments import (
    NoiseScale,
    gradient_noise_scale,
    gradient_variance,
    squared_gradients,
)
from deepprop.network import cost, forward, init_params, predict
from deepprop.per_example import (
    per_example_gradients,
    per_example_norms,
    per_example_products,
)
from deepprop.private import Privacy
from deepprop.quadratic import by_quadratic_model
from deepprop.report import plot_layers, progress_bar
from deepprop.stacks import stack, unstack
from deepprop.training import train_step
from deepprop.weight_mask import weight_mask

__version__ = "0.1.0"

__all__ = [
    "Activation",
    "Cache",
    "Cost",
    "Diagnosis",
    "Factors",
    "Fit",
    "GradientError",
    "GradientReport",
    "Layer",
    "MemoryPlan",
    "NoiseScale",
    "Output",
    "Privacy",
    "TrainingError",
    "activation",
    "balanced_weights",
    "by_quadratic_model",
    "check_gradients",
    "clipped_backward",
    "cost",
    "data_parallel",
    "diagnose",
    "diagnosis_of",
    "epsilon_spent",
    "error_signals",
    "export",
    "findings",
    "fit",
    "fit_batches",
    "fit_ensemble",
    "forward",
    "gauss_newton_diagonal",
    "gauss_newton_product",
    "gradient_noise_scale",
    "gradient_variance",
    "gradients",
    "in_backward",
    "init_params",
    "kfac",
    "kfac_factors",
    "load",
    "load_extra",
    "manual_backward",
    "memory_plan",
    "mesh",
    "noise_for",
    "output",
    "per_example_gradients",
    "per_example_norms",
    "per_example_products",
    "place",
    "place_examples",
    "plot_layers",
    "predict",
    "progress_bar",
    "sampled_targets",
    "save",
    "scale_by_kfac",
    "squared_gradients",
    "stack",
    "train_step",
    "unstack",
    "weight_mask",
    "with_products",
]
