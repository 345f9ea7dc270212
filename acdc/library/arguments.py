"""What the functions of the interface are given: types, checked, and the options that models and tasks stand for."""

import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from acdc.errors import UserError, short, unknown
from acdc.library.tasks import LoadedTask, load_task
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


def loaded_task(task: Task | str) -> Task:
    """A task, loaded if it is a name or a path."""
    return task if isinstance(task, Task) else load_task(task)


def refuse_unknown(options: Iterable[str], known: Iterable[str]) -> None:
    """Raise UserError for an option that is not known."""
    for key in options:
        if key not in known:
            raise UserError(unknown("option", key, known))


@contextmanager
def folder_for(out: str | Path | None) -> Iterator[Path]:
    """The directory that is asked for, or a temporary one."""
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary) / "files" if out is None else Path(out)


def warn(text: str) -> None:
    """Warn of a doubt, at the line that calls the interface; what only says how far it is stays unsaid."""
    if text.startswith("warning: "):
        warnings.warn(text.removeprefix("warning: "), stacklevel=8)


def of_model(model: Model | str | None) -> dict[str, str | None]:
    """The options of a config that a model decides: its name and, if it is loaded, its dtype."""
    if not isinstance(model, Model):
        return {"model": model}
    return {"model": model.name, "dtype": str(model.transformer.dtype).removeprefix("torch.")}
