"""The runs of `acdc stability`: the base run with another seed, resampled prompts, or another order of the edges."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from random import Random

import numpy as np

from acdc.commands.run import describe, measure, run_or_read
from acdc.files.circuit import CircuitFile
from acdc.graph.circuit import Circuit
from acdc.io.progress import Show
from acdc.methods.discover import find, scored
from acdc.registry import ORDERS, parse_filter
from acdc.setup.config import Config, command_line
from acdc.setup.inputs import Inputs
from acdc.task.tokenize import Split, make_data

BASE = "base"


@dataclass(frozen=True)
class Rerun:
    """The base run with one thing changed.

    Args:
        name: of its directory
        seed: of its prompts
        command: repeats it
    """

    name: str
    kind: str
    inputs: Inputs
    seed: int
    command: str
    notes: tuple[str, ...]


def reruns(base: Inputs, counts: dict[str, int], out: Path, progress: Show) -> Iterator[Rerun]:
    """Yield all reruns of a base run, which must be finished. A rerun doesn't depend on how many others there are."""
    first = base.config.seed
    for number in range(1, counts["seeds"] + 1):
        seed = first + number
        other = with_seed(base, seed)
        yield Rerun(f"seed-{seed}", "seeds", other, seed, command_line(other.config), ())
    for number in range(1, counts["resamples"] + 1):
        note = f"found on bootstrap resample {number} of the prompts for discovery"
        command = _command("resamples", number)
        yield Rerun(f"resample-{number}", "resamples", resampled(base, number), first, command, (note,))
    for number, (order, seed) in enumerate(islice(orders(base.config), counts["orders"]), 1):
        name = f"order-{order}"
        note = f"edges tested in the order {order}"
        if order == "random":
            name += f"-{seed}"
            note += f", shuffled by seed {seed}"
        other = in_order(base, order, seed, out, progress)
        yield Rerun(name, "orders", other, first, _command("orders", number), (note,))


def _command(kind: str, number: int) -> str:
    return f"acdc stability --config ../config.yaml --{kind} {number}"


def with_seed(base: Inputs, seed: int) -> Inputs:
    """Return the inputs of `acdc run` with another seed, for prompts and whatever else the method draws."""
    data = make_data(base.task, base.model.tokenizer, base.config.examples, seed)
    base.model.check_fits(data.discovery, data.held_out)
    config = base.config.model_copy(update={"seed": seed, "data_hash": data.hash[:16]})
    return Inputs(config, base.task, base.model, data)


def resampled(base: Inputs, number: int) -> Inputs:
    """Draw as many prompts for discovery, with replacement, from the base run's; the held-out prompts stay."""
    n = len(base.data.discovery.clean)
    rng = Random(f"resample {base.config.seed} {number}")
    discovery = take(base.data.discovery, [rng.randrange(n) for _ in range(n)])
    return Inputs(base.config, base.task, base.model, replace(base.data, discovery=discovery))


def take(prompts: Split, examples: list[int]) -> Split:
    """Return some of the examples, in this order; an example may be taken more than once."""
    taken = [np.flatnonzero(prompts.rows[:, 0] == example) for example in examples]
    rows = [np.stack([np.full(len(at), i), prompts.rows[at, 1]], 1) for i, at in enumerate(taken)]
    scored_rows = np.concatenate(taken)
    return Split(
        clean=prompts.clean[examples],
        corrupted=prompts.corrupted[examples],
        pad=prompts.pad[examples],
        rows=np.concatenate(rows),
        correct=prompts.correct[scored_rows],
        wrong=prompts.wrong[scored_rows],
        texts=tuple(prompts.texts[example] for example in examples),
    )


def orders(config: Config) -> Iterator[tuple[str, int]]:
    """Yield all orders but the config's own, with their seeds: first the fixed ones, then random ones without end."""
    for order in ORDERS:
        if order not in ("random", config.order):
            yield order, config.seed
    for seed in count(config.seed + 1):
        yield "random", seed


def in_order(base: Inputs, order: str, seed: int, out: Path, progress: Show) -> Inputs:
    """Return the base run's inputs, with its edges tested in another order."""
    if base.config.prefilter is not None:
        # A filter may draw by the seed, which is the order's here. Its scores are read from the base run instead.
        scored(base, parse_filter(base.config.prefilter)[0], out / BASE, progress)
    return replace(base, config=base.config.model_copy(update={"order": order, "seed": seed}))


def circuit_of(rerun: Rerun, out: Path, progress: Show, say: Callable[[str], None]) -> Circuit:
    """Do a run, or read it if it is finished. Return its circuit, without dead edges."""
    folder = out / rerun.name

    def make() -> CircuitFile:
        found = find(rerun.inputs, folder, progress).circuit
        circuit = found.pruned()
        file = describe(rerun.inputs, circuit, found, measure(rerun.inputs, circuit), rerun.notes)
        say(f"{rerun.name}: {circuit.n_edges} edges")
        task = file.task.model_copy(update={"seed": rerun.seed})
        return file.model_copy(update={"task": task, "command": rerun.command})

    return run_or_read(folder, make).circuit()
