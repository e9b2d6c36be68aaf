"""Training: one step, whole runs, many networks at once, and private training."""

from deepprop.training.accountant import epsilon_spent, noise_for
from deepprop.training.checkpoint import Checkpoint
from deepprop.training.ensemble import fit_ensemble
from deepprop.training.epoch import train_step
from deepprop.training.examples import balanced_weights
from deepprop.training.fitting import fit, fit_batches
from deepprop.training.images import plot_attributions
from deepprop.training.label_audit import Audit, audit
from deepprop.training.loop import Fit, TrainingError
from deepprop.training.measure import Validation
from deepprop.training.private import Privacy
from deepprop.training.record import Record
from deepprop.training.report import plot_layers, progress_bar

__all__ = [
    "Audit",
    "Checkpoint",
    "Fit",
    "Privacy",
    "Record",
    "TrainingError",
    "Validation",
    "audit",
    "balanced_weights",
    "epsilon_spent",
    "fit",
    "fit_batches",
    "fit_ensemble",
    "noise_for",
    "plot_attributions",
    "plot_layers",
    "progress_bar",
    "train_step",
]
