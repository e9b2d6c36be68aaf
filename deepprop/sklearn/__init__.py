"""Estimators for scikit-learn: its MLP's parameters and attributes, trained by deepprop."""

from deepprop._checks import missing

try:
    import sklearn  # noqa: F401 - the extra; our own modules need more of it
except ImportError:
    raise missing("deepprop.sklearn", "scikit-learn", "sklearn") from None

from deepprop.sklearn.estimators import MLPClassifier, MLPRegressor

__all__ = ["MLPClassifier", "MLPRegressor"]
