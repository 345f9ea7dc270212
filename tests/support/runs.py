"""Small runs, whole and killed."""

from __future__ import annotations

from pathlib import Path

from acdc.commands import run as runner
from acdc.io.progress import Progress
from acdc.registry import METHODS
from acdc.setup.config import resolve
from acdc.setup.inputs import load

# The files of a run of acdc that are the same bytes however often it was killed.
COMPARED = ("circuit.json", "log.jsonl", "config.yaml", "circuit.svg", "report.html")
RUN = {"task": "or-gate", "dtype": "float64", "device": "cpu"}


def inputs(**given):
    """A loaded run on `tracr-reverse`, except where options say otherwise."""
    given = {"task": "tracr-reverse", "ablation": "zero", "dtype": "float64", "device": "cpu", "batch": 4, **given}
    config, task, _ = resolve(given, None, None)
    return load(config, task)


def scoring(method, **given):
    """A loaded run of a method on `tiny`."""
    options = {name: 3 for name in ("updates", "steps") if name in METHODS[method].options}
    limit = {"edges": 30} if "edges" in METHODS[method].options else {"threshold": 0.02}
    metric = "logit-diff" if METHODS[method].slope else "kl"
    basic = {"task": "ioi", "model": "tiny", "examples": 6, "ablation": "corrupted", "batch": None, "metric": metric}
    return inputs(**basic, method=method, **limit, **options, **given)


def made(folder: Path, **given) -> Path:
    """Run on `or-gate`, except where options say otherwise, and return the path of circuit.json."""
    config, task, _ = resolve({**RUN, **given}, None, None)
    return runner.run(load(config, task), folder)[1] / "circuit.json"


class Killed(BaseException):
    """Not an Exception, so that nothing catches it."""


def of_work(p) -> bool:
    """Whether a report says that a method has done something: a batch of decisions, an update, some prompts."""
    of_method = isinstance(p, Progress) and p.stage in ("filter", "scores", "gradients", "search", "elimination")
    return of_method and p.done > 0 and not (p.stage == "scores" and p.resumed)


def killer(after: int):
    """A progress callback that raises `Killed` at its n-th report of work."""
    calls = []

    def progress(p):
        calls.extend([1] * of_work(p))
        if of_work(p) and len(calls) == after:
            raise Killed

    return progress
