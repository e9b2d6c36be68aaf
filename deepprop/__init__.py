"""deepprop: deep feed-forward networks in JAX, with the backward pass written out by hand."""

from deepprop.activations import Activation, activation
from deepprop.backprop import error_signals, gradients, manual_backward
from deepprop.costs import Cost, Output, output
from deepprop.ensemble import fit_ensemble
from deepprop.fit import balanced_weights, fit, fit_batches
from deepprop.gradient_check import GradientError, GradientReport, check_gradients
from deepprop.layers import Cache, Layer
from deepprop.loop import Fit, TrainingError
from deepprop.model_file import load, load_extra, save
from deepprop.network import cost, forward, init_params, predict
from deepprop.report import progress_bar
from deepprop.training import train_step

__version__ = "0.1.0"

__all__ = [
    "Activation",
    "Cache",
    "Cost",
    "Fit",
    "GradientError",
    "GradientReport",
    "Layer",
    "Output",
    "TrainingError",
    "activation",
    "balanced_weights",
    "check_gradients",
    "cost",
    "error_signals",
    "fit",
    "fit_batches",
    "fit_ensemble",
    "forward",
    "gradients",
    "init_params",
    "load",
    "load_extra",
    "manual_backward",
    "output",
    "predict",
    "progress_bar",
    "save",
    "train_step",
]
