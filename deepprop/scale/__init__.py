"""Large networks: many devices, and the memory that a training step needs."""

from deepprop.scale.devices import data_parallel, mesh, place, place_examples
from deepprop.scale.memory import MemoryPlan, memory_plan

__all__ = ["MemoryPlan", "data_parallel", "memory_plan", "mesh", "place", "place_examples"]
