"""matplotlib with our own settings, and silent."""

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any


@contextmanager
def own_settings(settings: Mapping[str, object]) -> Iterator[None]:
    """Draw with matplotlib's defaults and `settings`, whatever matplotlibrc the user has. Nothing is said on stderr:
    not that the font cache is built, and not that the font lacks a character."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    date = os.environ.pop("SOURCE_DATE_EPOCH", None)  # matplotlib reads it, though no date is written
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            library = _imported()
            used: dict[Any, Any] = {**library.rcParamsDefault, **settings}
            del used["backend"]  # a figure without pyplot has none
            with library.rc_context(used):
                yield
    finally:
        logger.setLevel(level)
        os.environ.update({"SOURCE_DATE_EPOCH": date} if date is not None else {})


def _imported() -> Any:
    """Import matplotlib, also where MPLBACKEND (Jupyter sets it) or a matplotlibrc file makes that fail."""
    try:
        import matplotlib
    except ValueError:
        os.environ.pop("MPLBACKEND", None)
        for name in [name for name in sys.modules if name.startswith("matplotlib.")]:
            del sys.modules[name]  # they are half-made
        spec = find_spec("matplotlib")
        assert spec and spec.origin
        here = Path.cwd()
        os.chdir(Path(spec.origin).with_name("mpl-data"))  # the matplotlibrc of the current folder is read first
        try:
            import matplotlib
        finally:
            os.chdir(here)
    return matplotlib


def saved(figure: Any, **options: Any) -> bytes:
    """Return a figure as the content of a file."""
    file = io.BytesIO()
    figure.savefig(file, **options)
    return file.getvalue()
