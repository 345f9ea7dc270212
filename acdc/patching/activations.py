"""The clean and ablated activations of a set of prompts, which patching mixes.

The ablation says what a removed edge carries: `corrupted`, the sender's output on the paired corrupted prompt; `zero`,
nothing (attention output biases stay, an MLP's output bias goes with it); `mean`, the sender's mean over the clean
prompts, position by position.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from acdc.errors import UserError, short
from acdc.model.activations import Activations
from acdc.model.transformer import Transformer
from acdc.patching.metrics import Metric, Targets, make_metric
from acdc.task.tokenize import Split

CHUNK = 32  # prompts per forward or backward pass
BATCH = 16  # most prompts per update of a training
TABLE_BYTES = 256 << 20  # bound on a table of what all senders write


@dataclass(frozen=True)
class ActivationCache:
    """Activations of a set of prompts, with what is needed to score them."""

    pad: Tensor  # Int[batch], positions of left padding
    mask: Tensor  # Bool[batch query key]
    rows: Tensor  # Int[row 2], scored (example, position) pairs
    targets: Targets  # answers and clean stream of the scored rows
    clean: Activations  # what every sender writes on the clean prompts
    ablated: Activations  # what a sender's removed edges carry
    residual: Tensor  # Float[layer+1 batch pos d_model], the clean stream before each layer, and the final one
    start: int  # first position at which clean and ablated can differ
    spans: Tensor | None = None  # Bool[span batch pos], the positions of each span; None without spans

    def metric(self, name: str, model: Transformer) -> Metric:
        """The metric of this name, on these prompts."""
        return make_metric(name, model, self.targets)

    @property
    def first(self) -> int:
        """The first live position: nothing changes and no row is scored before it."""
        return min(self.start, int(self.rows[:, 1].min()))

    @property
    def difference(self) -> Activations:
        """Ablated − clean output of every sender, from `first` on."""
        first = self.first
        ablated = self.ablated.map(lambda x: x[..., first:, :])
        clean = self.clean.map(lambda x: x[..., first:, :])
        return Activations(ablated.inputs - clean.inputs, ablated.z - clean.z, ablated.mlp - clean.mlp)

    def changes(self, model: Transformer, n: int) -> Iterator[tuple[int, Tensor]]:
        """Yield how the stream of the full model changes from `first` on where one of the first n senders alone is
        ablated, as blocks (`Transformer.written_by`)."""

        def added(layer: int, change: Tensor) -> Tensor:
            return model.moved(layer, self.clean.z[layer][..., self.first :, :], change)

        return model.written_by(self.difference, n, added)

    def products(self, a: Tensor, b: Tensor) -> Tensor:
        """Products of vectors at the live positions, Float[sender batch live d_model] and Float[receiver batch live
        d_model], summed over positions and prompts: Float[sender receiver], or Float[sender receiver span]."""
        if self.spans is None:
            return a.flatten(1) @ b.flatten(1).T
        of_spans = zip(*(self.split_by_span(x) for x in (a, b)), strict=True)
        return torch.stack([x.flatten(1) @ y.flatten(1).T for x, y in of_spans], -1)

    def split_by_span(self, x: Tensor) -> tuple[Tensor, ...]:
        """Split Float[any batch live d_model] into a Float[any position d_model] for each span."""
        order, counts = self._by_span
        return x.flatten(1, 2)[:, order].split(counts, 1)[:-1]

    def join_spans(self, parts: Sequence[Tensor], like: Tensor) -> Tensor:
        """Undo `split_by_span`, with 0 for padding: Float[any batch live d_model], of the live positions of `like`."""
        order, counts = self._by_span
        x = torch.cat([*parts, parts[0].new_zeros(len(parts[0]), counts[-1], parts[0].shape[2])], 1)
        return x[:, order.argsort()].view(-1, *like.shape[1:])

    @cached_property
    def _by_span(self) -> tuple[Tensor, list[int]]:
        """The live positions of all prompts, span by span, then those without, and how many each has."""
        assert self.spans is not None
        spans = self.spans[:, :, self.first :].flatten(1)
        whole = torch.cat([spans, ~spans.any(0, keepdim=True)])
        return whole.int().argmax(0).argsort(stable=True), whole.sum(1).tolist()

    def at_once(self, model: Transformer, versions: int) -> int:
        """How many prompts fit into `TABLE_BYTES` with so many stream vectors at every live position."""
        n_live = self.mask.shape[1] - self.first
        return max(1, TABLE_BYTES // (versions * n_live * model.config.d_model * model.dtype.itemsize))

    def examples(self, chunk: slice) -> ActivationCache:
        """The activations of some of the prompts."""
        begin, end, _ = chunk.indices(len(self.pad))
        inside = (self.rows[:, 0] >= begin) & (self.rows[:, 0] < end)
        t = self.targets
        rows = self.rows[inside]
        targets = Targets(t.example[inside] - begin, t.correct[inside], t.wrong[inside], t.clean[inside])
        return ActivationCache(
            self.pad[chunk],
            self.mask[chunk],
            torch.stack([rows[:, 0] - begin, rows[:, 1]], 1),
            targets,
            self.clean.map(lambda x: x[:, chunk]),
            self.ablated.map(lambda x: x[:, chunk]),
            self.residual[:, chunk],
            self.start,
            None if self.spans is None else self.spans[:, chunk],
        )


def prepare(
    model: Transformer, prompts: Split, ablation: str, mean: Activations | None = None, n_spans: int = 0
) -> ActivationCache:
    """Run the model on the clean prompts and, for `corrupted` ablation, on the corrupted ones. `mean`, for mean
    ablation, are the means of the whole data set if the prompts are only a part of it; `n_spans` is how many spans that
    has. Raises UserError if a node writes values that are not finite or too large to be normalised."""
    to = model.device
    tokens, pad, rows = (torch.as_tensor(a).to(to) for a in (prompts.clean, prompts.pad, prompts.rows))
    clean, residual = run_in_chunks(model, tokens, pad)
    _check(model, clean, residual, prompts, "clean")
    start = 0
    if ablation == "corrupted":
        other = torch.as_tensor(prompts.corrupted).to(to)
        ablated, stream = run_in_chunks(model, other, pad)
        _check(model, ablated, stream, prompts, "corrupted")
        del stream
        if model.config.causal:
            # Before their first difference both runs are equal; make them so exactly, not only to rounding.
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
    correct, wrong = (torch.as_tensor(a).to(to) for a in (prompts.correct, prompts.wrong))
    targets = Targets(rows[:, 0], correct, wrong, model.normalise(final))
    mask = model.attention_mask(pad, tokens.shape[1])
    return ActivationCache(pad, mask, rows, targets, clean, ablated, residual, start, span_masks(prompts, n_spans, to))


def span_masks(prompts: Split, n_spans: int, device: torch.device) -> Tensor | None:
    """The positions of each span, Bool[span batch pos]; None without spans."""
    if not n_spans:
        return None
    return torch.stack([torch.as_tensor(prompts.spans == span) for span in range(n_spans)]).to(device)


def unpaired(ablation: str, mean: Activations, batch: int) -> Activations:
    """What removed edges carry under zero or mean ablation, the same for every prompt."""
    one = mean if ablation == "mean" else mean.map(torch.zeros_like)
    return one.map(lambda x: x.expand(-1, batch, *x.shape[2:]))


def means(model: Transformer, prompts: Split) -> Activations:
    """The mean over the clean prompts of what every sender writes, position by position; batch is 1."""
    tokens, pad = (torch.as_tensor(a).to(model.device) for a in (prompts.clean, prompts.pad))
    real = torch.arange(tokens.shape[1], device=model.device) >= pad[:, None]
    count = real.sum(0).clamp(min=1).to(model.dtype)[:, None]
    total: Activations | None = None
    for t, p, r in zip(tokens.split(CHUNK), pad.split(CHUNK), real.split(CHUNK), strict=True):
        run, _ = model.run(t, p)
        weight = (r.to(model.dtype)[:, :, None] / count)[None]
        part = Activations(
            (run.inputs * weight).sum(1, keepdim=True),
            (run.z * weight[:, :, None]).sum(1, keepdim=True),
            (run.mlp * weight).sum(1, keepdim=True),
        )
        total = part if total is None else total + part
    assert total is not None
    return total


def non_finite_advice(model: Transformer) -> str:
    """Advice for values that are not finite."""
    wider = "" if model.dtype == torch.float64 else "use --dtype float64, or "
    return f"nothing that follows could be trusted; {wider}look at the model's weights"


def _check(model: Transformer, run: Activations, residual: Tensor, prompts: Split, which: str) -> None:
    """Raise UserError with the first node and prompt of a run whose values are not finite or too large."""
    # This norm is finite only if every value and its square are.
    if torch.isfinite(torch.linalg.vector_norm(residual)):
        return
    dtype = str(model.dtype).removeprefix("torch.")
    for name, x in _blocks(model, run, residual):
        # The norms take squares.
        finite = torch.isfinite(x if model.config.norm == "none" else x.square().sum(-1, keepdim=True)).all(-1)
        if not finite.all():
            prompt = int(torch.nonzero(~finite)[0, 0])
            text = short(prompts.texts[prompt][which == "corrupted"])
            values = f"{float(x[prompt].abs().max()):.3g} on the {which} prompt {text}"
            raise UserError(f"{name} {values}, which {dtype} can't go on with: {non_finite_advice(model)}")


def _blocks(model: Transformer, run: Activations, residual: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield, in words and as Float[batch pos d_model], what each sender writes, then what each layer reads."""
    for sender in model.config.graph().senders:
        yield f"{sender.name} writes", model.written(run, sender)
    for layer, x in enumerate(residual[:-1]):
        yield f"layer {layer} reads", x
    yield "the logits read", residual[-1]


def run_in_chunks(model: Transformer, tokens: Tensor, pad: Tensor) -> tuple[Activations, Tensor]:
    """A plain run, `CHUNK` prompts at a time; only one chunk is in memory beside the result."""
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
