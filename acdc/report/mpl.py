"""matplotlib with our own settings, and silent."""

import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


@contextmanager
def own_settings(settings: Mapping[str, object]) -> Iterator[None]:
    """Draw with matplotlib's defaults and `settings`, whatever matplotlibrc the user has. Nothing is said on stderr:
    not that the font cache is built, and not that the font lacks a character."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import matplotlib

            used: dict[Any, Any] = {**matplotlib.rcParamsDefault, **settings}
            del used["backend"]  # a figure without pyplot has none
            with matplotlib.rc_context(used):
                yield
    finally:
        logger.setLevel(level)


def saved(figure: Any, **options: Any) -> bytes:
    """Return a figure as the content of a file."""
    file = io.BytesIO()
    figure.savefig(file, **options)
    return file.getvalue()
