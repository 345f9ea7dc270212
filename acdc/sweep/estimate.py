"""Estimated duration of a run: its operations over the speed of the device, within a factor of about three. Finished
runs of the same kind correct it.

ACDC needs about three evaluations per receiver (measured: 1,200 for 445 on a model of GPT-2 small's size, 2,500 for 841
on SmolLM2), each of half the layers at the live positions, and of the output layer.
"""

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


def seconds(config: Config, sizes: ModelConfig, prompts: Split, device: str, threads: int) -> float:
    """Return the estimated duration in seconds. The prompts are those of one half; the threads are of the CPU."""
    n, n_pos = prompts.clean.shape
    live = live_positions(config, sizes, prompts)
    attention = 4 * sizes.d_model * sizes.d_head * sizes.n_heads
    mlp = (3 if sizes.gated else 2) * sizes.d_model * sizes.d_mlp
    layer = 2 * (attention + mlp)
    output = 2 * sizes.d_model * sizes.vocab_out * len(prompts.rows)
    whole = n * n_pos * sizes.n_layers * layer + output
    evaluation = n * live * sizes.n_layers * layer / 2 + output
    graph = sizes.graph()

    def scored(method: str) -> float:
        facts = METHODS[method]
        if facts.kind == "exact":
            return (len(graph.senders) if facts.nodes else graph.n_edges) * evaluation
        times = config.steps or config.updates or facts.repeats
        if method == "eap-ig-activations":
            times *= sizes.n_layers
        return facts.passes * times * whole

    if config.method != "acdc":
        work = scored(config.method)
    else:
        work = PER_RECEIVER * len(graph.receivers) * evaluation
        if config.prefilter:
            work += scored(parse_filter(config.prefilter)[0])
    speed = SPEED[device] * (threads if device == "cpu" else 1)
    return START + (4 * whole + work) / speed  # four passes measure the circuit on both halves


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
