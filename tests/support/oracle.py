"""The slow, plainly right ACDC: one full masked forward pass per edge, in float64, loops and nothing cached.

It shares with the product the weights, the names and the data, and no line of arithmetic.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch

from acdc.graph.graph import Graph
from acdc.model.transformer import Transformer


def norm(model: Transformer, x: torch.Tensor) -> torch.Tensor:
    if model.config.norm == "none":
        return x
    if model.config.norm == "rms":
        return rms(model, x)
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + model.config.norm_eps)


def rms(model: Transformer, x: torch.Tensor) -> torch.Tensor:
    return x / torch.sqrt((x**2).mean(-1, keepdim=True) + model.config.norm_eps)


def soft_cap(x: torch.Tensor, cap: float) -> torch.Tensor:
    return torch.tanh(x / cap) * cap if cap > 0 else x


def place(model: Transformer, x: str, layer: int, y: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Norm and rotation of a query or key, pair by pair."""
    c = model.config
    if c.head_norm:
        y = rms(model, y) * model.weights[f"layers.{layer}.{x}.norm"]
    out, half = y.clone(), c.rotary // 2
    local = c.local_rotary and c.windows[layer] > 0
    for i in range(half):
        angle = positions.float() * model.weights["rotary.local" if local else "rotary.frequencies"][i].float()
        cos, sin = angle.cos().double(), angle.sin().double()
        out[..., i] = y[..., i] * cos - y[..., i + half] * sin
        out[..., i + half] = y[..., i + half] * cos + y[..., i] * sin
    return out


def over_heads(model: Transformer, name: str, x: torch.Tensor) -> torch.Tensor:
    """The root mean square of the queries, or keys, of all heads from one input."""
    weights, biases = model.weights[f"{name}.weight"], model.weights[f"{name}.bias"]
    every = torch.cat([x @ w + b for w, b in zip(weights, biases, strict=True)], -1)
    return torch.sqrt((every**2).mean(-1, keepdim=True) + model.config.norm_eps)


def added(model: Transformer, layer: int, together: torch.Tensor) -> torch.Tensor:
    """What the heads of a layer add to the stream, from the sum of what they write."""
    return rms(model, together) * model.weights[f"layers.{layer}.o.norm"] if model.config.post_norm else together


def part(ablated: torch.Tensor, written: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    if kept.shape[-1] > 1:
        return ablated + (written - ablated) @ kept
    return torch.lerp(ablated, written, kept)


def act(model: Transformer, x: torch.Tensor) -> torch.Tensor:
    if model.config.activation == "silu":
        return x / (1 + torch.exp(-x))
    if model.config.activation == "relu":
        return x.clamp(min=0)
    if model.config.activation == "gelu":
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def forward(model, graph: Graph, tokens, pad, ablated, kept):
    """One pass: outputs by sender name, and the final stream. `ablated`: outputs by sender name, or None to patch
    nothing.
    `kept`: set of edge names; an edge that is missing from it carries the ablated output. Or a dict from edge name to
    [batch 1 1] or [batch pos 1]: how much of the edge each prompt, or position, keeps, from 0 to 1; or to
    [batch d_model d_model]: what each prompt keeps of it."""
    w, c = model.weights, model.config
    batch, n_pos = tokens.shape
    positions = (torch.arange(n_pos)[None] - pad[:, None]).clamp(min=0)
    token = w["token.weight"][tokens]
    written = [token]
    if not c.rotary:
        position = w["position.weight"][positions]
        written = [token, position] if c.split_position else [token + position]
    out = dict(zip(graph.inputs, written, strict=True))

    def receive(receiver: str, layer: int, after_attention: bool = False):
        x = torch.zeros(batch, n_pos, c.d_model, dtype=token.dtype)
        heads = [x] * c.n_layers
        for sender, written in out.items():
            if (c.parallel or after_attention is False) and sender.startswith(f"a{layer}."):
                continue
            if sender.startswith(f"m{layer}."):  # nodes of one MLP don't read each other
                continue
            edge = f"{sender}->{receiver}"
            if isinstance(kept, dict):
                chosen = part(ablated[sender], written, kept[edge].to(written.dtype))
            else:
                chosen = written if ablated is None or edge in kept else ablated[sender]
            if sender.startswith("a"):
                of = int(sender[1:].split(".")[0])
                heads[of] = heads[of] + chosen
            else:
                x = x + chosen
        for i in range(layer + int(after_attention and not c.parallel)):
            x = x + added(model, i, heads[i] + w[f"layers.{i}.o.bias"])
        return norm(model, x) if c.pre_norm or receiver == "logits" else x

    everywhere, seen = (torch.zeros(batch, n_pos, n_pos, dtype=torch.bool) for _ in range(2))
    for t, s in itertools.product(range(n_pos), range(n_pos)):
        everywhere[:, t, s] = (pad <= s) & (s <= t or not c.causal) | (s == t)
    for layer in range(c.n_layers):
        at = f"layers.{layer}."
        window = (c.windows[layer] if c.windows else 0) or n_pos
        for t, s in itertools.product(range(n_pos), range(n_pos)):
            seen[:, t, s] = everywhere[:, t, s] & (t - s < window)
        for h in range(c.n_heads):
            q, k, v = (
                receive(f"a{layer}.h{h}<{x}>", layer) @ w[f"{at}{x}.weight"][h] + w[f"{at}{x}.bias"][h] for x in "qkv"
            )
            if c.joint_head_norm:
                roots = (over_heads(model, f"{at}{x}", receive(f"a{layer}.h{h}<{x}>", layer)) for x in "qk")
                q, k = (y / root * w[f"{at}{x}.norm"][h] for x, y, root in zip("qk", (q, k), roots, strict=True))
            q, k = place(model, "q", layer, q, positions), place(model, "k", layer, k, positions)
            scores = soft_cap(q @ k.transpose(1, 2), c.score_cap).masked_fill(~seen, -math.inf)
            z = torch.softmax(scores, -1) @ v
            out[f"a{layer}.h{h}"] = z @ w[at + "o.weight"][h]
        if c.d_mlp:
            names = c.features[layer] if c.features else ()
            for name in names:
                out[f"m{layer}.{name}"] = feature(model, layer, name, receive(f"m{layer}.{name}", layer, True))
            x = receive(f"m{layer}.rest" if names else f"m{layer}", layer, True)
            every = sum(feature(model, layer, name, x) for name in names)
            out[f"m{layer}.rest" if names else f"m{layer}"] = mlp(model, layer, x) - every
    return out, receive("logits", c.n_layers)


def mlp(model: Transformer, layer: int, x: torch.Tensor) -> torch.Tensor:
    w, at = model.weights, f"layers.{layer}.mlp_"
    hidden = x @ w[at + "in.weight"] + w[at + "in.bias"]
    if model.config.gated:
        hidden = act(model, x @ w[at + "gate.weight"] + w[at + "gate.bias"]) * hidden
    else:
        hidden = act(model, hidden)
    written = hidden @ w[at + "out.weight"] + w[at + "out.bias"]
    return rms(model, written) * w[at + "out.norm"] if model.config.post_norm else written


def feature(model: Transformer, layer: int, name: str, x: torch.Tensor) -> torch.Tensor:
    """What one feature of an MLP writes, from the normalised input of the MLP."""
    i = int(name[1:])
    if name[0] == "f":
        coder = model.features[layer].of
        every = (x @ coder.encoder + coder.bias).clamp(min=0)
        active = every[..., i]
        if coder.threshold is not None:
            active = torch.where(x @ coder.encoder[:, i] + coder.bias[i] > coder.threshold[i], active, 0.0)
        if coder.top:
            active = torch.where((every > active[..., None]).sum(-1) < coder.top, active, 0.0)
        return active[..., None] * coder.decoder[i]
    w, at = model.weights, f"layers.{layer}.mlp_"
    active = x @ w[at + "in.weight"][:, i] + w[at + "in.bias"][i]
    if model.config.gated:
        active = active * act(model, x @ w[at + "gate.weight"][:, i] + w[at + "gate.bias"][i])
    else:
        active = act(model, active)
    return active[..., None] * w[at + "out.weight"][i]


class Naive:
    """A model, prompts, a metric and an ablation; `metric(kept)` for any set of edge names, or of edge-spans, `edge @
    span`, if the spans have names."""

    def __init__(self, model: Transformer, prompts, metric: str, ablation: str, spans: tuple[str, ...] = ()) -> None:
        self.spans = spans
        self.model, self.graph, self.prompts, self.name = model, model.config.graph(), prompts, metric
        self.tokens, self.pad = torch.as_tensor(prompts.clean), torch.as_tensor(prompts.pad)
        clean, final = forward(model, self.graph, self.tokens, self.pad, None, set())
        self.clean_logits = self.logits(final)
        if ablation == "corrupted":
            self.ablated, _ = forward(model, self.graph, torch.as_tensor(prompts.corrupted), self.pad, None, set())
        elif ablation == "zero":
            self.ablated = {s: torch.zeros_like(x) for s, x in clean.items()}
        else:
            real = (torch.arange(self.tokens.shape[1])[None] >= self.pad[:, None]).to(final.dtype)[..., None]
            self.ablated = {s: ((x * real).sum(0) / real.sum(0).clamp(min=1)).expand_as(x) for s, x in clean.items()}

    def logits(self, final):
        full = final @ self.model.weights["unembed.weight"].T + self.model.weights["unembed.bias"]
        full = full + (final @ self.model.unembed_mean + self.model.unembed_bias_mean)[..., None]
        return soft_cap(full, self.model.config.logit_cap)

    def metric(self, kept) -> float:
        if self.spans:
            weights = torch.zeros(*self.graph.edges.shape, len(self.spans))
            for edge, _, span in (name.partition(" @ ") for name in kept):
                weights[(*self.graph.parse_edge(edge), self.spans.index(span))] = 1
            return float(self.weighted(weights))
        _, final = forward(self.model, self.graph, self.tokens, self.pad, self.ablated, kept)
        return float(self.mean(self.logits(final)))

    def weighted(self, weights: torch.Tensor) -> torch.Tensor:
        """The metric when edge-spans have weights, Float[sender receiver span]; differentiable."""
        of_span = torch.stack([torch.as_tensor(self.prompts.spans == i) for i in range(len(self.spans))], -1)
        at = of_span.double()[:, :, None, :]
        kept = {self.graph.edge_name(s, r): (at * weights[s, r]).sum(-1) for s, r in np.argwhere(self.graph.edges)}
        _, final = forward(self.model, self.graph, self.tokens, self.pad, self.ablated, kept)
        return self.mean(self.logits(final))

    def metrics(self, circuits: np.ndarray) -> np.ndarray:
        """The same of many circuits, Bool[circuit sender receiver], each on prompts of its own in one long batch."""
        n, batch = len(circuits), len(self.tokens)
        kept = {
            self.graph.edge_name(s, r): torch.from_numpy(circuits[:, s, r]).repeat_interleave(batch)[:, None, None]
            for s, r in np.argwhere(self.graph.edges)
        }
        tokens, pad, *ablated = (
            x.repeat(n, *[1] * (x.ndim - 1)) for x in (self.tokens, self.pad, *self.ablated.values())
        )
        _, final = forward(self.model, self.graph, tokens, pad, dict(zip(self.ablated, ablated, strict=True)), kept)
        return self.mean(self.logits(final).unflatten(0, (n, batch))).numpy()

    def mean(self, logits):
        """The metric, from Float[... batch pos vocab]."""
        values: dict[int, list[torch.Tensor]] = {}
        for (b, t), correct, wrong in zip(self.prompts.rows, self.prompts.correct, self.prompts.wrong, strict=True):
            right, bad = [i for i in correct if i >= 0], [i for i in wrong if i >= 0]
            values.setdefault(int(b), []).append(self.row(logits[..., b, t, :], self.clean_logits[b, t], right, bad))
        return torch.stack([torch.stack(v).mean(0) for v in values.values()]).mean(0)

    def row(self, logits, clean, right, wrong):
        log_q, log_p = torch.log_softmax(logits, -1), torch.log_softmax(clean, -1)
        if self.name == "kl":
            return (log_p.exp() * (log_p - log_q)).sum(-1)
        if self.name == "logit-diff":
            return -(logits[..., right].mean(-1) - logits[..., wrong].amax(-1))
        if self.name == "prob-diff":
            return -(log_q.exp()[..., right].sum(-1) - log_q.exp()[..., wrong].sum(-1))
        if self.name == "nll":
            return -torch.log(log_q.exp()[..., right].sum(-1))
        return ((logits - clean) ** 2).mean(-1)


def parts(kept: set[str], edges) -> set[str]:
    """Those of some edges that are kept, or what is kept of their edge-spans."""
    return {name for name in kept if name.split(" @ ")[0] in edges}


def naive_acdc(naive: Naive, threshold: float, direct: bool, magnitude: bool = False, allowed: set[str] | None = None):
    """Kept residual edges, kept direct edges and the final metric, edge by edge in the paper's order.

    Edges that are not allowed go untested when the turn of their receiver's group comes. With spans, an edge that stays
    is tested span by span, from the last to the first, and edge-spans are kept."""
    g = naive.graph
    at = [f" @ {span}" for span in naive.spans] or [""]
    kept = {g.edge_name(s, r) + span for s, r in np.argwhere(g.edges) for span in at}
    direct_kept = {g.direct_name(j) for j in np.flatnonzero(g.direct)} if direct else set()
    current = naive.metric(kept)
    margins = []

    def consider(edges: set[str]) -> bool:
        nonlocal kept, current
        new = naive.metric(kept - edges)
        change = abs(new - current) if magnitude else new - current
        margins.append(abs(threshold - change))
        if change < threshold:
            kept, current = kept - edges, new
            return True
        return False

    def into(receiver: str) -> list[str]:
        def key(name: str):
            sender = g.senders[g.sender_index[name.split("->", maxsplit=1)[0]]]
            return (-sender.layer, 0 if sender.kind == "mlp" else 1, -sender.head)

        return sorted((e for e in {name.split(" @ ")[0] for name in kept} if e.split("->")[1] == receiver), key=key)

    def used(node: str) -> bool:
        return any(e.split("->")[0] == node for e in kept)

    def forbid(*receivers: str) -> None:
        nonlocal kept, current
        for receiver in receivers if allowed is not None else ():
            kept -= parts(kept, set(into(receiver)) - allowed)
            if direct and "<" in receiver and not into(receiver):
                direct_kept.discard(f"{receiver}->{receiver.split('<')[0]}")
        current = naive.metric(kept) if allowed is not None else current

    def visit(receiver: str) -> None:
        for e in into(receiver):
            if not consider(parts(kept, [e])) and naive.spans:
                for span in reversed(naive.spans):
                    consider({f"{e} @ {span}"})

    forbid("logits")
    visit("logits")

    def mlp(layer: int) -> None:
        nonlocal kept
        names = [s.name for s in g.senders if s.kind == "mlp" and s.layer == layer]
        for name in names:
            if not used(name):
                kept -= parts(kept, into(name))
        forbid(*(name for name in names if used(name)))
        for name in reversed(names):
            visit(name)

    for layer in reversed(range(g.n_layers)):
        if not g.parallel:
            mlp(layer)
        for h in range(g.n_heads):
            if not used(f"a{layer}.h{h}"):
                for x in "qkv":
                    kept -= parts(kept, into(f"a{layer}.h{h}<{x}>"))
                    direct_kept.discard(f"a{layer}.h{h}<{x}>->a{layer}.h{h}")
        forbid(*(f"a{layer}.h{h}<{x}>" for h in range(g.n_heads) for x in "qkv"))
        if direct:
            for x in "vkq":
                for h in reversed(range(g.n_heads)):
                    name = f"a{layer}.h{h}<{x}>"
                    if f"{name}->a{layer}.h{h}" in direct_kept and consider(parts(kept, into(name))):
                        direct_kept.discard(f"{name}->a{layer}.h{h}")
        for x in "vkq":
            for h in reversed(range(g.n_heads)):
                visit(f"a{layer}.h{h}<{x}>")
        if g.parallel:
            mlp(layer)
    return kept, direct_kept, current, min(margins, default=math.inf)
