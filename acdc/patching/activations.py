"""The clean and the ablated run of a set of prompts: everything that patching mixes.

Ablations say what a removed edge carries: `corrupted`, the sender's output on the paired corrupted prompt; `zero`,
nothing (attention output biases stay, an MLP's output bias goes with it); `mean`, the sender's mean over the clean
prompts, position by position.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from acdc.errors import UserError
from acdc.model.transformer import Activations, Transformer
from acdc.patching.metrics import Metric, Targets, make_guess, make_metric
from acdc.task.tokenize import Split

CHUNK = 32  # prompts per plain forward pass
TABLE_BYTES = 256 << 20  # of what all senders write, for some prompts


@dataclass(frozen=True)
class ActivationCache:
    """What patching needs of a set of prompts.

    Args:
        pad: Int[batch], positions of left padding
        mask: Bool[batch query key]
        rows: Int[row 2], scored (example, position) pairs
        targets: what the scored rows are compared with
        clean, ablated: what every sender writes, on the clean prompts and when its edges are removed
        residual: Float[layer+1 batch pos d_model], the clean stream before each layer, and the final one
        start: first position at which clean and ablated can differ
    """

    pad: Tensor
    mask: Tensor
    rows: Tensor
    targets: Targets
    clean: Activations
    ablated: Activations
    residual: Tensor
    start: int

    def metric(self, name: str, model: Transformer) -> Metric:
        """The metric of this name on these prompts."""
        return make_metric(name, model, self.targets)

    def guess(self, name: str, model: Transformer) -> Metric | None:
        """A cheap guess at it, or None where there is none."""
        return make_guess(name, model, self.targets, model.config.vocab_out)

    @property
    def first(self) -> int:
        """The first position that has to be computed: nothing changes before it, and no row before it is scored."""
        return min(self.start, int(self.rows[:, 1].min()))

    @property
    def difference(self) -> Activations:
        """What every sender writes when removed, minus what it writes on the clean prompts, from `first` on."""
        live = (self.ablated.map(self._live), self.clean.map(self._live))
        return Activations(*(getattr(live[0], f) - getattr(live[1], f) for f in ("inputs", "z", "mlp")))

    def _live(self, x: Tensor) -> Tensor:
        return x[..., self.first :, :]

    def at_once(self, model: Transformer, versions: int) -> int:
        """How many of the prompts may be written out to the stream at once in so many versions; bounds memory."""
        n_live = self.mask.shape[1] - self.first
        return max(1, TABLE_BYTES // (versions * n_live * model.config.d_model * model.dtype.itemsize))

    def examples(self, chunk: slice) -> ActivationCache:
        """The runs of some of the prompts."""
        begin, end, _ = chunk.indices(len(self.pad))
        inside = (self.rows[:, 0] >= begin) & (self.rows[:, 0] < end)
        t, rows = self.targets, self.rows[inside]
        targets = Targets(t.example[inside] - begin, end - begin, t.correct[inside], t.wrong[inside], t.clean[inside])
        return ActivationCache(
            self.pad[chunk],
            self.mask[chunk],
            torch.stack([rows[:, 0] - begin, rows[:, 1]], 1),
            targets,
            self.clean.examples(chunk),
            self.ablated.examples(chunk),
            self.residual[:, chunk],
            self.start,
        )

    def scored(self, model: Transformer, x: Tensor) -> Tensor:
        """Normalised rows of the final stream: Float[batch pos d_model] to Float[row d_model]."""
        return model.normalise(x[self.rows[:, 0], self.rows[:, 1]])


Named = Callable[[int, str], str]  # what messages call a prompt, by its index, in its clean or corrupted run


def numbered(prompt: int, run: str) -> str:
    """The name of a prompt of which no more is known."""
    return f"prompt {prompt + 1}, {run} run"


def prepare(
    model: Transformer, prompts: Split, ablation: str, mean: Activations | None = None, named: Named = numbered
) -> ActivationCache:
    """Run the model on the clean and, where the ablation needs it, the corrupted prompts.

    Args:
        mean: for mean ablation, the means of the whole data set if the prompts are a part of it only
    Raises:
        UserError: a node writes what is no number, or too large to be normalised.
    """
    to = model.device
    tokens, pad, rows = (torch.as_tensor(a).to(to) for a in (prompts.clean, prompts.pad, prompts.rows))
    clean, residual = _run(model, tokens, pad)
    _check(model, clean, residual, "clean", named)
    start = 0
    if ablation == "corrupted":
        other = torch.as_tensor(prompts.corrupted).to(to)
        ablated, stream = _run(model, other, pad)
        _check(model, ablated, stream, "corrupted", named)
        del stream
        if model.config.causal:
            # Before their first difference both runs are the same: say so exactly, not to rounding.
            same = (tokens == other).cumprod(1).bool()
            start = int(same.all(0).cumprod(0).sum())
            same = same[None, :, :, None]
            for into, x, where in (
                (ablated.inputs, clean.inputs, same),
                (ablated.z, clean.z, same[:, :, None]),
                (ablated.mlp, clean.mlp, same),
            ):
                torch.where(where, x, into, out=into)
    else:
        ablated = unpaired(ablation, means(model, prompts) if mean is None else mean, len(tokens))
    final = residual[-1][rows[:, 0], rows[:, 1]]
    targets = Targets(
        rows[:, 0],
        len(tokens),
        torch.as_tensor(prompts.correct).to(to),
        torch.as_tensor(prompts.wrong).to(to),
        model.normalise(final),
    )
    mask = model.attention_mask(pad, tokens.shape[1])
    return ActivationCache(pad, mask, rows, targets, clean, ablated, residual, start)


def unpaired(ablation: str, mean: Activations, batch: int) -> Activations:
    """What removed edges carry under zero or mean ablation: the same for every prompt."""
    one = mean if ablation == "mean" else mean.map(torch.zeros_like)
    return one.map(lambda x: x.expand(-1, batch, *x.shape[2:]))


def means(model: Transformer, prompts: Split) -> Activations:
    """What every sender writes on the clean prompts, position by position, as the mean over them: batch is 1."""
    tokens, pad = (torch.as_tensor(a).to(model.device) for a in (prompts.clean, prompts.pad))
    real = torch.arange(tokens.shape[1], device=model.device) >= pad[:, None]
    count = real.sum(0).clamp(min=1).to(model.dtype)[:, None]
    total: Activations | None = None
    for t, p, r in zip(tokens.split(CHUNK), pad.split(CHUNK), real.split(CHUNK), strict=True):
        run, weight = model.run(t, p)[0], (r.to(model.dtype)[:, :, None] / count)[None]
        part = Activations(
            (run.inputs * weight).sum(1, keepdim=True),
            (run.z * weight[:, :, None]).sum(1, keepdim=True),
            (run.mlp * weight).sum(1, keepdim=True),
        )
        total = part if total is None else total + part
    assert total is not None
    return total


def non_finite_advice(model: Transformer) -> str:
    """What to do about numbers that there are none of."""
    wider = "" if model.dtype == torch.float64 else "use --dtype float64, or "
    return f"nothing that follows could be trusted; {wider}look at the model's weights"


def _check(model: Transformer, run: Activations, residual: Tensor, which: str, named: Named) -> None:
    """Raise UserError, with the first node and prompt, unless all of a run is sound."""
    # The norm of it all is finite only if every number is, and every square, which the model's norms take.
    if torch.isfinite(torch.linalg.vector_norm(residual)):
        return
    graph, dtype = model.config.graph(), str(model.dtype).removeprefix("torch.")
    for first, written in model.written_by(run, len(graph.senders)):
        wrong = torch.nonzero(~_sound(model, written).all(-1))
        if len(wrong):
            sender, prompt = wrong[0].tolist()
            value, name = float(written[sender, prompt].abs().max()), graph.senders[first + sender].name
            raise UserError(
                f"{name} writes {value:.3g} on {named(prompt, which)}, which {dtype} can't go on with: "
                f"{non_finite_advice(model)}"
            )
    wrong = torch.nonzero(~_sound(model, residual).all(-1))  # each node is sound, and their sum is not
    if len(wrong):
        layer, prompt = wrong[0].tolist()
        name = "the logits read" if layer == graph.n_layers else f"layer {layer} reads"
        value = float(residual[layer, prompt].abs().max())
        raise UserError(
            f"{name} {value:.3g} on {named(prompt, which)}, which {dtype} can't go on with: {non_finite_advice(model)}"
        )


def _sound(model: Transformer, x: Tensor) -> Tensor:
    """Bool[...]: whether rows Float[... d_model] are finite, and so are their squares where the model has norms."""
    return torch.isfinite(x if model.config.norm == "none" else x.square().sum(-1, keepdim=True)).all(-1)


def _run(model: Transformer, tokens: Tensor, pad: Tensor) -> tuple[Activations, Tensor]:
    """A plain run, some prompts at a time; beside the result only one chunk's is in memory."""
    whole: list[Tensor] = []
    for start in range(0, len(tokens), CHUNK):
        at = slice(start, start + CHUNK)
        run, residual = model.run(tokens[at], pad[at])
        parts = (run.inputs, run.z, run.mlp, residual)
        if len(tokens) <= CHUNK:
            return run, residual
        whole = whole or [x.new_empty(x.shape[0], len(tokens), *x.shape[2:]) for x in parts]
        for into, x in zip(whole, parts, strict=True):
            into[:, at] = x
    inputs, z, mlp, residual = whole
    return Activations(inputs, z, mlp), residual
