"""Optimizers that use the signals, and what any optax optimizer needs from deepprop."""

from deepprop.optimizers.fused_update import in_backward
from deepprop.optimizers.masks import weight_mask
from deepprop.optimizers.natural_gradient import kfac, scale_by_kfac
from deepprop.optimizers.quadratic_model import by_quadratic_model

__all__ = ["by_quadratic_model", "in_backward", "kfac", "scale_by_kfac", "weight_mask"]
