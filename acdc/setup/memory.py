"""How much memory a run takes at most, before it is made; and how many prompts may be held in what there is.

The sum follows the run: the process and the weights; then, after one another, the runs of the prompts, the scores of a
method, ACDC's search, and the measures, of which the largest counts. Pieces that grow with the prompts are bounded
where they are made (`BATCH_BYTES`, `CACHE_BYTES`, `TABLE_BYTES`), but for the runs, which are what parts are for. How
many edges will be kept isn't known: `NODES` of a circuit are taken for granted, and `CHANGING` receivers of each layer
that change yet.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from acdc.methods import eap, edge_patching, masks
from acdc.model.transformer import VOCAB_BLOCK
from acdc.model.transformer import Config as Sizes
from acdc.patching.activations import CHUNK, TABLE_BYTES
from acdc.patching.engine import BATCH_BYTES, CACHE_BYTES
from acdc.patching.metrics import SAMPLE_NUMBERS, SAMPLE_VOCABULARY
from acdc.registry import parse_filter
from acdc.setup.config import Config
from acdc.task.tokenize import Split

PROCESS = 310e6  # Python with PyTorch and a tokenizer on a CPU
HELD = 1.3  # times the weights: some of them are views of the mapped file, which stays for them
LOADING = 1.8  # times the weights: what folding takes for a moment
CHANGING = 3  # receivers of a layer whose values can change yet, at any one time
NODES = 50  # of a circuit: its judging makes what they write
CANDIDATES = 24  # in a batch, where an edge in a hundred stays
ROWS = 256  # at which the whole vocabulary is looked at together
SPARE = 0.8  # of a bound on the memory is planned with: the rest is for what isn't foreseen


@dataclass(frozen=True)
class Load:
    """What the memory of a run depends on.

    Args:
        sizes: of the model
        itemsize: bytes of a number
        prompts: of one half
        positions: of each
        live: positions at which anything can change
        rows: scored positions of all prompts
        paired: whether removed edges carry another run of each prompt
    """

    sizes: Sizes
    itemsize: int
    prompts: int
    positions: int
    live: int
    rows: int
    paired: bool

    @classmethod
    def of(cls, config: Config, sizes: Sizes, prompts: Split) -> Load:
        """Of a config, for a model of these sizes and the prompts of one half."""
        n, n_pos = prompts.clean.shape
        live, paired = n_pos, config.ablation == "corrupted"
        if paired and sizes.causal:
            live -= int((prompts.clean == prompts.corrupted).all(0).cumprod().sum())
        return cls(sizes, 8 if config.dtype == "float64" else 4, n, n_pos, live, len(prompts.rows), paired)

    @property
    def weights(self) -> int:
        """All weights."""
        return self.itemsize * sum(int(np.prod(shape)) for shape in self.sizes.shapes().values())

    def stream(self, prompts: int) -> int:
        """One vector of the stream at every live position of some prompts."""
        return self.itemsize * prompts * self.live * self.sizes.d_model

    def one_run(self, prompts: int) -> int:
        """What all senders write at all positions of some prompts."""
        s = self.sizes
        inputs, heads = s.d_model * (1 + s.split_position), s.n_layers * s.n_heads * s.d_head
        return self.itemsize * prompts * self.positions * (inputs + heads + s.n_layers * s.d_model * (s.d_mlp > 0))

    def residual(self, prompts: int) -> int:
        """The stream before each layer, and the last."""
        return self.itemsize * prompts * self.positions * (self.sizes.n_layers + 1) * self.sizes.d_model

    def runs(self, prompts: int) -> int:
        """What is kept of some prompts (`acdc.patching.activations.ActivationCache`)."""
        return self.one_run(prompts) * (1 + self.paired) + self.residual(prompts)

    def making(self, prompts: int) -> int:
        """What making these runs takes beside them: the other run's stream, and one chunk's tensors a second time."""
        few = min(CHUNK, prompts)
        return self.residual(prompts) * self.paired + self.one_run(few) + self.residual(few)

    def table(self, prompts: int) -> int:
        """What all senders write to the stream, twice, as far as it is made at once."""
        senders = len(self.sizes.graph().senders)
        return 2 * min(TABLE_BYTES, senders * self.stream(prompts))

    def judging(self, prompts: int) -> int:
        """What the nodes of a circuit write, of that table."""
        senders = len(self.sizes.graph().senders)
        return self.table(prompts) * min(NODES, senders) // senders

    def vocabulary(self, metric: str, prompts: int) -> int:
        """The output layer, of the rows of some prompts: looked at once as a whole, in blocks for every candidate."""
        s, rows = self.sizes, -(-self.rows * prompts // self.prompts)
        whole = self.itemsize * s.vocab_out
        if metric == "l2":
            return whole * rows * (1 + 3 * CANDIDATES)
        guessed = s.vocab_out >= SAMPLE_VOCABULARY and metric in ("kl", "nll", "prob-diff")
        sample = self.itemsize * min(SAMPLE_NUMBERS, 256 * rows * s.d_model) if guessed else 0
        once = (3 if guessed else 2) * whole * min(ROWS, rows)
        block = self.itemsize * CANDIDATES * rows * (2 * min(VOCAB_BLOCK, s.vocab_out) + 2 * s.d_model)
        return sample + max(once, block)

    def search(self, prompts: int, batch: int | None) -> int:
        """What ACDC's engine has beside the runs: values that change, differences, a batch of candidates."""
        s, stream = self.sizes, self.stream(prompts)
        candidate = stream * (s.d_mlp + 4 * s.d_model) // s.d_model  # as `acdc.patching.engine.Engine.capacity` counts
        candidates = max(candidate, min(BATCH_BYTES, min(CANDIDATES, batch or CANDIDATES) * candidate))
        differences = min(CACHE_BYTES, len(s.graph().senders) * stream)
        return 3 * CHANGING * s.n_layers * stream + differences + candidates

    def scoring(self, method: str, prompts: int) -> int:
        """What a method with scores has beside the runs."""
        s, heads = self.sizes, 3 * self.sizes.n_heads
        if method == "random":
            return 0
        if method in ("subnetwork-probing", "edge-pruning", "diffmask"):
            few = self.stream(min(masks.BATCH, prompts))
            senders = len(s.graph().senders) if method == "edge-pruning" else 2
            return few * s.n_layers * (senders + 3 * heads + 4 * s.d_mlp // s.d_model)
        if method in ("edge-patching", "causal-mediation"):
            versions = edge_patching.VERSIONS if method == "edge-patching" else s.n_heads
            few = min(prompts, max(1, TABLE_BYTES // (len(s.graph().senders) * self.stream(1))))
            return self.table(few) + versions * self.stream(few) * (8 + 2 * s.d_mlp // s.d_model)
        few = min(eap.CHUNK, prompts)
        again = 2 * (self.one_run(few) + self.residual(few)) if method.startswith("eap-ig") else 0
        return again + self.one_run(few) + self.table(few) + 2 * heads * self.stream(few)


def expected(config: Config, sizes: Sizes, prompts: Split, halves: int = 2, device: str = "cpu") -> int:
    """About how many bytes a run takes at most: of the process on a CPU, of the device elsewhere.

    Args:
        prompts: of one half
        halves: into how many halves the prompts are divided
    """
    load = Load.of(config, sizes, prompts)
    n = min(config.part or load.prompts, load.prompts)
    before = load.runs(n) if n == load.prompts else 0  # a half of one part stays where it is
    output = load.vocabulary(config.metric, load.prompts)
    work = [load.runs(n) + load.making(n)]
    methods = [parse_filter(config.prefilter)[0]] if config.prefilter else []
    methods += [config.method] if config.method != "acdc" else []
    work += [load.runs(n) + output + load.scoring(method, n) for method in methods]
    if config.method == "acdc":
        work.append(load.runs(n) + output + load.search(n, config.batch))
    work.append(before * (halves - 1) + load.runs(n) + max(load.making(n), output, load.judging(n)))
    if device != "cpu":
        return load.weights + max(work)
    return int(PROCESS + max(LOADING * load.weights, (HELD if load.itemsize == 4 else 1) * load.weights + max(work)))


def prompts_at_once(
    config: Config, sizes: Sizes, prompts: Split, memory: float, halves: int = 2, device: str = "cpu"
) -> int | None:
    """How many prompts may be held at once to stay below `memory` bytes; None where it is all of them, and at least
    1."""

    def fits(part: int | None) -> bool:
        return expected(config.model_copy(update={"part": part}), sizes, prompts, halves, device) <= SPARE * memory

    if fits(None):
        return None
    low, high = 1, len(prompts.clean)
    while high - low > 1:  # the most that fit: what is needed grows with them
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
