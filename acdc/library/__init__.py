"""The Python interface: load models and tasks, discover, evaluate and compare circuits, as the command line does."""

from acdc.library.circuits import discover, evaluate, load_circuit, save
from acdc.library.comparisons import compare, stability
from acdc.library.models import load_model
from acdc.library.tasks import load_task, tasks

__all__ = ["compare", "discover", "evaluate", "load_circuit", "load_model", "load_task", "save", "stability", "tasks"]
