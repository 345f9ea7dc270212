"""Automated circuit discovery: the few edges of a language model that carry a behaviour.

    import acdc

    circuit = acdc.discover(acdc.load_model("tiny"), acdc.load_task("greater-than"))

The functions are in `acdc.library`, which is imported (with torch) when the first of them is used.
"""

from acdc.errors import UserError

TYPE_CHECKING = False  # typing takes time
if TYPE_CHECKING:
    from acdc.library import discover, evaluate, load_model, load_task, save

__all__ = ["UserError", "discover", "evaluate", "load_model", "load_task", "save"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from acdc import library

    return getattr(library, name)


def __dir__() -> list[str]:
    return __all__
