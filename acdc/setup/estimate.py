"""Estimated duration of a run: its operations over the speed of the device, within a factor of about three. Finished
runs of the same kind correct it; so does the run itself, as it goes on (`acdc.io.progress`).

ACDC needs about three evaluations per receiver (measured: 1,200 for 445 on a model of GPT-2 small's size, 2,500 for 841
on SmolLM2), each of a quarter of the layers at the live positions, and of the output layer.
"""

import math
from collections.abc import Iterable, Sequence
from statistics import median

from acdc.model.config import ModelConfig
from acdc.registry import METHODS, parse_filter
from acdc.setup.config import Config
from acdc.setup.memory import live_positions
from acdc.task.tokenize import Split

SPEED = {"cpu": 50e9, "cuda": 1e13, "mps": 1e12}  # operations per second, of one core or a GPU
START = 1.0  # seconds for everything else: files, pictures
PER_RECEIVER = 3  # evaluations of ACDC
FILTERED = 0.5  # of the nodes are left by a filter
PATCHED = 0.4  # of a run of the whole model: a run of a circuit
MEASURED = 12  # such runs, of a few circuits on each half, with their metrics, and
CURVE = 10  # of the sizes of the curve; on the path to a target
PATH = 80
ELIMINATED = (64, 10, 0.4)  # edges, tests of each, and the share of an evaluation by ACDC that a test takes
LOCATED = 1.5  # tests of edges and of the spans of those that stay, over tests of edges
GRADIENTS = 18  # passes that halve the edges of a superset
LARGE = 5_000  # edges of a graph in which gradients leave so many edges that ACDC comes before elimination


def seconds(config: Config, sizes: ModelConfig, prompts: Split, device: str, threads: int) -> float:
    """Return the estimated duration of a run in seconds; see `stages`."""
    return sum(stages(config, sizes, prompts, device, threads).values())


def stages(config: Config, sizes: ModelConfig, prompts: Split, device: str, threads: int) -> dict[str, float]:
    """Return the stages of a run, and about how many seconds each takes. The prompts are those of one half; the threads
    are of the CPU."""
    speed = SPEED.get(device, SPEED["cpu"]) * (threads if device == "cpu" else 1)
    n, n_pos = prompts.clean.shape
    live = live_positions(config, sizes, prompts)
    layer = sizes.n_heads * sizes.operations("head") + sizes.operations("mlp")
    output = sizes.operations("logits") * len(prompts.rows)
    whole = n * n_pos * sizes.n_layers * layer + output
    evaluation = n * live * sizes.n_layers * layer / 4 + output
    graph = sizes.graph()
    n_spans = 1 if prompts.spans is None else int(prompts.spans.max()) + 1

    def scored(method: str) -> float:
        facts = METHODS[method]
        if facts.kind == "exact":
            return (len(graph.senders) if facts.nodes else graph.n_edges * n_spans) * 2 * evaluation
        times = config.steps or config.updates or facts.repeats
        if method == "eap-ig-activations":
            times *= sizes.n_layers
        return facts.passes * times * whole

    work = {"loading": 0.75 * START * speed, "activations": 4 * whole}
    tests: float = PER_RECEIVER * len(graph.receivers)
    if config.prefilter:
        method, share = parse_filter(config.prefilter)
        work["filter"] = scored(method)
        tests = min(tests, round(share * graph.n_edges)) * FILTERED
    if config.positions:
        tests *= LOCATED
    if config.method != "acdc":
        work["scores"] = scored(config.method)
    elif config.eliminates:
        edges, of_each, part = ELIMINATED
        work["gradients"] = GRADIENTS * math.log2(max(2, graph.n_edges / edges)) * whole
        if graph.n_edges > LARGE:
            work["search"] = tests * evaluation
        work["elimination"] = edges * of_each * part * evaluation
    else:
        work["search"] = tests * evaluation
    work["evaluation"] = (2 + MEASURED * PATCHED) * whole
    work["curve"] = (PATH if config.eliminates else CURVE) * PATCHED * whole
    work["report"] = 0.25 * START * speed
    return {stage: operations / speed for stage, operations in work.items()}


def corrected(estimates: Sequence[float], taken: Iterable[tuple[float, float]]) -> list[float]:
    """Return the estimates times the median error of finished runs, given as (estimate, seconds)."""
    ratios = [actual / max(guess, 1e-9) for guess, actual in taken]
    factor = median(ratios) if ratios else 1.0
    return [guess * factor for guess in estimates]


def in_words(x: float) -> str:
    """Return an approximate duration as text."""
    if x < 90:
        return f"{x:.0f} s"
    return f"{x / 60:.0f} min" if x < 90 * 60 else f"{x / 3600:.1f} h"
