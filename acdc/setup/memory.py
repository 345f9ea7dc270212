"""Estimates, before a run, how much memory it takes, and how many prompts can be held at once.

A run holds the model and the activations of its prompts, and has one working set at a time beside them. Working sets
are bounded where they are allocated (`TABLE_BYTES`, `CHUNK`, `BATCH`), so that what grows with the prompts is mostly
their activations.
"""

from __future__ import annotations

from bisect import bisect
from dataclasses import dataclass

import psutil
import torch

from acdc.model.config import ModelConfig
from acdc.model.transformer import VOCAB_BLOCK
from acdc.patching.activations import BATCH, CHUNK, TABLE_BYTES
from acdc.patching.metrics import SAMPLE_NUMBERS
from acdc.registry import METHODS, parse_filter
from acdc.setup.config import Config
from acdc.task.tokenize import Split

PROCESS = 310e6  # bytes of Python with PyTorch and a tokenizer on a CPU
LOADING = 1.3  # while weights are read, a part of the checkpoint's files is in the machine's memory beside them
CANDIDATES = 24  # typical number of candidates in a batch of ACDC
SPARE = 0.8  # share of the bound that is planned with


@dataclass(frozen=True)
class Sizes:
    """What the memory of a run depends on; all methods return bytes."""

    model: ModelConfig
    itemsize: int  # bytes of a number
    prompts: int  # in one half
    positions: int  # of each prompt
    live: int  # positions at which clean and ablated run can differ
    rows: int  # scored positions of all prompts
    paired: bool  # whether removed edges carry activations of corrupted prompts

    @classmethod
    def of(cls, config: Config, model: ModelConfig, prompts: Split) -> Sizes:
        """The sizes of a config's run, from the prompts of one half."""
        n, positions = prompts.clean.shape
        itemsize = 8 if config.dtype == "float64" else 4
        live = live_positions(config, model, prompts)
        return cls(model, itemsize, n, positions, live, len(prompts.rows), config.ablation == "corrupted")

    @property
    def weights(self) -> int:
        """All weights."""
        return self.itemsize * self.model.n_weights

    def activations(self, n: int) -> int:
        """What all senders write in one run of n prompts; heads are kept before their output projection."""
        m = self.model
        graph = m.graph()
        inputs = m.d_model * len(graph.inputs)
        heads = m.n_layers * m.n_heads * m.d_head
        mlps = m.d_model * graph.mlps(m.n_layers - 1).stop
        return self.itemsize * n * self.positions * (inputs + heads + mlps)

    def residual(self, n: int) -> int:
        """The residual stream of n prompts, before each layer and after the last one."""
        return self.itemsize * n * self.positions * self.model.d_model * (self.model.n_layers + 1)

    def cache(self, n: int) -> int:
        """The `ActivationCache` of n prompts."""
        return self.activations(n) * (1 + self.paired) + self.residual(n)

    def stream(self, n: int) -> int:
        """One vector of the residual stream at every live position of n prompts."""
        return self.itemsize * n * self.live * self.model.d_model

    @property
    def output(self) -> int:
        """The output layer on all scored rows: `sampled_logsumexp`, 256 rows of logits, and a batch of candidates in
        blocks of the vocabulary."""
        m = self.model
        sample = min(SAMPLE_NUMBERS, 256 * self.rows * m.d_model)
        block = min(VOCAB_BLOCK, m.vocab_out) + m.d_model
        return self.itemsize * (sample + 3 * m.vocab_out * min(256, self.rows) + 2 * CANDIDATES * self.rows * block)

    def passes(self, n: int) -> int:
        """Plain forward passes over n prompts, a chunk at a time."""
        chunk = min(CHUNK, n)
        return self.activations(chunk) + self.residual(chunk)

    def working_set(self, method: str, n: int) -> int:
        """What a method has beside model and activations of n prompts."""
        m = self.model
        senders = len(m.graph().senders)
        kind = METHODS[method].kind
        if kind == "search":  # current values of the nodes, differences, a batch of candidates, sums of heads
            return senders * self.stream(n) + (2 + m.post_norm) * self.table(n)
        if kind in ("exact", "activations"):  # what all senders write, with changes
            return 4 * self.table(n)
        if kind == "gradient":  # three runs, and twice the gradients at the inputs of a layer's heads, or of an MLP
            inputs = max(3 * m.n_heads, *(len(m.graph().mlp_names(layer)) for layer in range(m.n_layers)))
            return 3 * self.passes(n) + 2 * inputs * self.stream(min(CHUNK, n)) + 2 * self.table(n)
        if kind == "training":  # a layer keeps for its gradient: its inputs, q, k and v, and hidden units
            inputs = 2 if METHODS[method].nodes else senders
            hidden = 4 * m.d_mlp // m.d_model
            return m.n_layers * self.stream(min(BATCH, n)) * (inputs + 9 * m.n_heads + hidden)
        return 0

    def table(self, n: int) -> int:
        """What all senders write to the stream, as much of it as is held at once."""
        return min(TABLE_BYTES, len(self.model.graph().senders) * self.stream(n))


def live_positions(config: Config, model: ModelConfig, prompts: Split) -> int:
    """The number of positions at which the ablated run can differ from the clean one."""
    n_pos = int(prompts.clean.shape[1])
    if config.ablation != "corrupted" or not model.causal:
        return n_pos
    return n_pos - int((prompts.clean == prompts.corrupted).all(0).cumprod().sum())


def expected(config: Config, model: ModelConfig, prompts: Split, halves: int = 2, device: str = "cpu") -> int:
    """About how many bytes a run takes at most: the whole process on a CPU, the device's memory elsewhere. `prompts`
    are those of one half; `halves` is 1 if the same prompts serve for discovery and evaluation."""
    sizes = Sizes.of(config, model, prompts)
    n = min(config.part or sizes.prompts, sizes.prompts)
    methods = [config.method]
    if config.prefilter:
        methods.append(parse_filter(config.prefilter)[0])
    discovery = sizes.cache(n) + max(sizes.working_set(method, n) for method in methods)
    if config.eliminates:  # inputs, queries, keys, values and outputs of the circuit's nodes, for all prompts
        discovery += 5 * len(model.graph().senders) * sizes.stream(sizes.prompts)
    if prompts.spans is not None:  # scores, changes and weights of edge-spans
        discovery += 4 * 8 * (int(prompts.spans.max()) + 1) * model.graph().edges.size
    all_fit = n == sizes.prompts  # then the discovery half stays while the other one is evaluated
    evaluation = sizes.cache(n) * (halves if all_fit else 1) + sizes.residual(n) + sizes.passes(n) + sizes.table(n)
    total = sizes.weights + max(discovery, evaluation) + sizes.output
    if device != "cpu":
        return total
    return int(PROCESS + max(LOADING * sizes.weights, total))


def prompts_at_once(
    config: Config, model: ModelConfig, prompts: Split, memory: float, halves: int = 2, device: str = "cpu"
) -> int | None:
    """The largest number of prompts, at least 1, that can be held within `memory` bytes; None if all of them can."""

    def needed(part: int | None) -> int:
        return expected(config.model_copy(update={"part": part}), model, prompts, halves, device)

    if needed(None) <= SPARE * memory:
        return None
    return max(1, bisect(range(1, len(prompts.clean)), SPARE * memory, key=needed))


def default_memory(device: torch.device) -> float:
    """Half of the device's memory, in bytes. What is free doesn't count: it would change a run's config and bytes."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 2
    return psutil.virtual_memory().total / 2
