"""What the functions of the interface are given: types, checked, and the options that models and tasks stand for."""

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any, TypeVar, get_args, get_type_hints

from acdc.errors import UserError, short
from acdc.library.tasks import LoadedTask
from acdc.model.load import Model
from acdc.task.schema import Task

F = TypeVar("F", bound=Callable[..., Any])


def checked(function: F) -> F:
    """Raise UserError if an argument has none of the types that the function states for it."""
    hints = get_type_hints(function)

    @wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        for name, value in signature(function).bind(*args, **options).arguments.items():
            kinds = get_args(hints[name]) or (hints[name],)
            if name != "options" and not isinstance(value, kinds):
                names = " or ".join(kind.__name__ for kind in kinds).replace("NoneType", "None")
                raise UserError(f"{function.__name__}: {name} should be {names}, got {short(value)}")
        return function(*args, **options)

    return call  # type: ignore[return-value]


def task_name(task: Task | str | None) -> str | None:
    """The task of a config: the name or path that it was loaded by."""
    if isinstance(task, LoadedTask):
        return task._name
    return task.name if isinstance(task, Task) else task


def of_model(model: Model | str | None) -> dict[str, str | None]:
    """The options of a config that a model decides: its name and, if it is loaded, its dtype."""
    if not isinstance(model, Model):
        return {"model": model}
    return {"model": model.name, "dtype": str(model.transformer.dtype).removeprefix("torch.")}
