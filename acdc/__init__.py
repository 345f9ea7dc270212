"""Automated circuit discovery: the few edges of a language model that carry a behaviour.

    import acdc

    circuit = acdc.discover(acdc.load_model("tiny"), acdc.load_task("greater-than"))

The functions are in `acdc.library`, which is imported (with torch) when the first of them is used.
"""

from acdc.errors import UserError

TYPE_CHECKING = False  # typing takes time
if TYPE_CHECKING:
    from acdc import methods
    from acdc.library import compare, discover, evaluate, load_circuit, load_model, load_task, save, stability, tasks

    __version__: str

__all__ = [
    "UserError", "compare", "discover", "evaluate", "load_circuit", "load_model", "load_task", "methods", "save",
    "stability", "tasks",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("acdc-circuits")
    if name == "methods":
        from importlib import import_module

        return import_module("acdc.methods")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from acdc import library

    return getattr(library, name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
