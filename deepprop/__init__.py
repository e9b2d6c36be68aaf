"""deepprop: deep feed-forward networks in JAX, with the backward pass written out by hand."""

from deepprop import files, optimizers, scale, signals, training
from deepprop.activations import Activation, activation
from deepprop.backprop import error_signals, gradients, manual_backward
from deepprop.checking import BackwardReport, check_backward
from deepprop.costs import Cost, Output
from deepprop.ends import input_signal, jacobian
from deepprop.files import export, load, load_extra, save
from deepprop.gradient_check import check_gradients
from deepprop.gradient_report import GradientError, GradientReport
from deepprop.layers import Cache, Layer
from deepprop.mixed_precision import with_compute_dtype, with_products
from deepprop.network import cost, forward, init_params, predict
from deepprop.optimizers import by_quadratic_model, in_backward, kfac, scale_by_kfac, weight_mask
from deepprop.outputs import output
from deepprop.scale import MemoryPlan, data_parallel, memory_plan, mesh, place, place_examples
from deepprop.signals import (
    Diagnosis,
    Factors,
    NoiseScale,
    clipped_backward,
    diagnose,
    diagnosis_of,
    findings,
    gauss_newton_diagonal,
    gauss_newton_product,
    gradient_noise_scale,
    gradient_variance,
    kfac_factors,
    per_example_gradients,
    per_example_norms,
    per_example_products,
    sampled_targets,
    squared_gradients,
)
from deepprop.stacks import stack, unstack
from deepprop.training import (
    Checkpoint,
    Fit,
    Privacy,
    Record,
    TrainingError,
    Validation,
    balanced_weights,
    epsilon_spent,
    fit,
    fit_batches,
    fit_ensemble,
    noise_for,
    plot_layers,
    progress_bar,
    train_step,
)

__version__ = "0.1.0"

__all__ = [
    "Activation",
    "BackwardReport",
    "Cache",
    "Checkpoint",
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
    "Record",
    "TrainingError",
    "Validation",
    "activation",
    "balanced_weights",
    "by_quadratic_model",
    "check_backward",
    "check_gradients",
    "clipped_backward",
    "cost",
    "data_parallel",
    "diagnose",
    "diagnosis_of",
    "epsilon_spent",
    "error_signals",
    "export",
    "files",
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
    "input_signal",
    "jacobian",
    "kfac",
    "kfac_factors",
    "load",
    "load_extra",
    "manual_backward",
    "memory_plan",
    "mesh",
    "noise_for",
    "optimizers",
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
    "scale",
    "scale_by_kfac",
    "signals",
    "squared_gradients",
    "stack",
    "train_step",
    "training",
    "unstack",
    "weight_mask",
    "with_compute_dtype",
    "with_products",
]
