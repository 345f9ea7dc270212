"""Run the whole model with any set of edges or nodes, or from one changed node on; differentiable.

Receiver input = Σ kept edges: sender's current output + Σ removed edges: sender's ablated output + biases. Only live
positions are computed; before them everything is clean.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from acdc.graph.circuit import Circuit
from acdc.graph.graph import QKV, Graph, Receiver
from acdc.model.transformer import Transformer, positions_of
from acdc.patching.activations import ActivationCache
from acdc.patching.metrics import Metric

Received = Callable[[Sequence[int], Tensor], Tensor]  # receivers, what they read → what they read instead
Heads = Tensor | slice  # some heads of a layer; a slice for all of them, which copies no weights
ALL = slice(None)
SORTED = 3  # copies of what all senders write, where positions are sorted by span


def circuit_edges(circuit: Circuit, model: Transformer) -> Tensor:
    """A circuit's edges as 1 and 0, Float in the shape of its `kept`; a removed direct edge removes all into its
    receiver."""
    return torch.as_tensor(circuit.open).to(model.device, model.dtype)


def patched_rows(model: Transformer, graph: Graph, cache: ActivationCache, edges: Tensor) -> Tensor:
    """The normalised final residual stream at the scored rows, Float[row d_model], when some edges are removed.

    `edges` is Float[sender receiver] or, with spans, Float[sender receiver span], 1 for a kept edge, 0 for a removed or
    missing one; values between mix the two.
    """
    copies = 1 if edges.ndim == 2 else SORTED
    size = cache.at_once(model, copies * len(graph.senders))
    chunks = (cache.examples(slice(start, start + size)) for start in range(0, len(cache.pad), size))
    return torch.cat([PatchedModel(model, chunk).with_edges(graph, edges) for chunk in chunks])


class PatchedModel:
    """The model on the live positions of some prompts, with some of its edges or nodes removed.

    All methods return the normalised final residual stream at the scored rows, the input of a metric of `cache`.
    """

    def __init__(self, model: Transformer, cache: ActivationCache) -> None:
        self.model = model
        self.cache = cache
        self.start = cache.first
        self.positions = positions_of(cache.pad, cache.mask.shape[1])

    def with_edges(self, graph: Graph, edges: Tensor) -> Tensor:
        """Rows for kept edges, as in `patched_rows`; nodes that nothing reads are skipped."""
        return self.run_edges(graph, edges, lambda _, x: x)[0]

    def edge_gradients(self, graph: Graph, edges: Tensor, metric: Metric) -> Tensor:
        """Gradients of a metric, summed over the prompts, at the weights of edges as in `patched_rows`, in their shape;
        0 for edges of nodes that nothing reads. The weights are by span if the cache has spans.

        The gradient at an edge's weight is what its sender adds times the gradient at its receiver's input. So only the
        latter needs a backward pass, which then keeps no senders' outputs per receiver.
        """
        to: list[int] = []
        offsets = []

        def shifted(receivers: Sequence[int], x: Tensor) -> Tensor:
            to.extend(receivers)
            offsets.append(torch.zeros_like(x, requires_grad=True))
            return x + offsets[-1]

        with torch.enable_grad():
            rows, senders, added = self.run_edges(graph, edges, shifted)
            gradients = torch.autograd.grad(metric(rows).sum(), offsets)
        out = edges.new_zeros(edges.shape)
        out[self._index(senders)[:, None], self._index(to)] = self.cache.products(added.detach(), torch.cat(gradients))
        return out * torch.as_tensor(graph.edges).to(out).view(*graph.edges.shape, *[1] * (edges.ndim - 2))

    def run_edges(self, graph: Graph, edges: Tensor, received: Received) -> tuple[Tensor, list[int], Tensor]:
        """The rows of `with_edges`, the senders computed, and what their kept edges add over removed ones, Float[sender
        batch live d_model]. `received` may change what receivers read, Float[receiver batch live d_model]."""
        model = self.model
        cache = self.cache
        kept = (edges.detach() != 0).cpu().numpy()
        index = graph.sender_index
        receivers = graph.receiver_index
        ablated = cache.ablated.inputs[:, :, self.start :]
        current = [cache.clean.inputs[:, :, self.start :] - ablated]  # what kept edges add over removed ones
        senders = list(range(len(current[0])))
        x = ablated.sum(0)  # the stream with all edges removed

        def receive(to: Sequence[int], x: Tensor) -> Tensor:
            weight = edges.index_select(0, self._index(senders)).index_select(1, self._index(to))
            return received(to, x + self._added(weight, torch.cat(current)))

        for layer in range(graph.n_layers):
            heads = [h for h in range(graph.n_heads) if kept[index[f"a{layer}.h{h}"]].any()]
            which = self._index(heads) if len(heads) < graph.n_heads else ALL
            z = cache.ablated.z[layer][:, :, self.start :]
            w_o = model.weights[f"layers.{layer}.o.weight"]
            before = x
            x = x + torch.einsum("bhte,hed->hbtd", z, w_o).sum(0) + model.weights[f"layers.{layer}.o.bias"]
            if heads:
                new = receive([receivers[f"a{layer}.h{h}<{c}>"] for c in QKV for h in heads], before)
                own = [self._project(c, layer, y, which) for c, y in zip(QKV, new.chunk(3), strict=True)]
                delta = self._attend(layer, own, which) - z[:, which].transpose(0, 1)
                current.append(delta @ w_o[which][:, None])
                senders += [index[f"a{layer}.h{h}"] for h in heads]
            if graph.mlp:
                removed = cache.ablated.mlp[layer][:, self.start :]
                if kept[index[f"m{layer}"]].any():
                    (new,) = receive([receivers[f"m{layer}"]], before if graph.parallel else x)
                    current.append((model.mlp(layer, new) - removed)[None])
                    senders.append(index[f"m{layer}"])
                x = x + removed
        (final,) = receive([receivers["logits"]], x)
        return self._rows(final), senders, torch.cat(current)

    def _added(self, weight: Tensor, current: Tensor) -> Tensor:
        """What some edges, with weights Float[sender receiver] or by span, add to their receivers' inputs: current
        Float[sender batch live d_model] to Float[receiver batch live d_model]."""
        if weight.ndim == 2:
            return (weight.T @ current.flatten(1)).view(-1, *current.shape[1:])
        parts = []
        for of_span, x in zip(weight.unbind(-1), self.cache.split_by_span(current), strict=True):
            parts.append((of_span.T @ x.flatten(1)).view(weight.shape[1], *x.shape[1:]))
        return self.cache.join_spans(parts, current)

    def with_nodes(self, nodes: Tensor) -> Tensor:
        """Rows for kept nodes, Float[sender]: 1 for a kept one, 0 for one removed for all its readers."""
        model = self.model
        graph = model.config.graph()
        clean = self.cache.clean
        ablated = self.cache.ablated
        index = graph.sender_index

        def mixed(current: Tensor, removed: Tensor, weight: Tensor) -> Tensor:
            return removed + weight * (current - removed)

        inputs, removed = (a[:, :, self.start :] for a in (clean.inputs, ablated.inputs))
        x = mixed(inputs, removed, nodes[: len(inputs), None, None, None]).sum(0)
        for layer in range(graph.n_layers):
            own = [self._project(c, layer, x[None], ALL) for c in QKV]
            first = index[f"a{layer}.h0"]
            weight = nodes[first : first + graph.n_heads, None, None, None]
            removed = ablated.z[layer][:, :, self.start :].transpose(0, 1)
            z = mixed(self._attend(layer, own, ALL), removed, weight)
            at = f"layers.{layer}.o."
            before = x
            x = x + torch.einsum("hbte,hed->btd", z, model.weights[at + "weight"]) + model.weights[at + "bias"]
            if graph.mlp:
                written = model.mlp(layer, before if graph.parallel else x)
                x = x + mixed(written, ablated.mlp[layer][:, self.start :], nodes[index[f"m{layer}"]])
        return self._rows(x)

    def without_edge(self, r: Receiver, written: Tensor) -> Tensor:
        """Rows of the full model without one edge, for each of some edges into a receiver: Float[edge row d_model].
        `written` is the ablated − clean output of their senders, Float[edge batch live d_model]."""
        model = self.model
        cache = self.cache
        layer = r.layer
        x = cache.residual[layer][:, self.start :]
        if r.kind == "logits":
            return self._rows(x + written)
        if r.kind == "mlp":
            clean = cache.clean.mlp[layer][:, self.start :]
            x = x if model.config.parallel else cache.residual[layer + 1][:, self.start :] - clean
            return self.without_node(layer, model.mlp(layer, x + written) - clean, False)
        head = slice(r.head, r.head + 1)
        own = []
        for c in QKV:
            if c == r.kind:
                own.append(self._project(c, layer, (x + written)[None], head))
            else:
                y = self._project(c, layer, x[None], head)
                own.append(y[:, None].expand(-1, len(written), *y.shape[1:]))
        z = self._attend(layer, own, head)[0] - cache.clean.z[layer][:, r.head, self.start :]
        return self.without_node(layer, model.write(layer, [r.head], z[None])[0], True)

    def without_node(self, layer: int, written: Tensor, head: bool) -> Tensor:
        """Rows of the full model without one node, for each of some heads of a layer or for its MLP: Float[node row
        d_model]. `written` is the ablated − clean output of the nodes, Float[node batch live d_model]."""
        model = self.model
        x = self.cache.residual[layer + 1][:, self.start :] + written
        if head and model.config.d_mlp and not model.config.parallel:
            clean = self.cache.clean.mlp[layer][:, self.start :]
            x = x + (model.mlp(layer, x - clean) - clean)
        for above in range(layer + 1, model.config.n_layers):
            own = [self._project(c, above, x[None], ALL) for c in QKV]
            z = self._attend(above, own, ALL)
            at = f"layers.{above}.o."
            before = x
            x = x + torch.einsum("h...te,hed->...td", z, model.weights[at + "weight"]) + model.weights[at + "bias"]
            if model.config.d_mlp:
                x = x + model.mlp(above, before if model.config.parallel else x)
        return self._rows(x)

    def _index(self, of: Sequence[int]) -> Tensor:
        return torch.tensor(list(of)).to(self.model.device)

    def _rows(self, x: Tensor) -> Tensor:
        """Final streams Float[... batch live d_model] to normalised rows Float[... row d_model]."""
        rows = self.cache.rows
        return self.model.normalise(x[..., rows[:, 0], rows[:, 1] - self.start, :])

    def _project(self, kind: str, layer: int, x: Tensor, heads: Heads) -> Tensor:
        """q, k or v of some heads from their inputs, before `place`: Float[head or 1, ... pos d_model] to
        Float[head ... pos d_head]."""
        at = f"layers.{layer}.{kind}."
        weight, bias = (self.model.weights[at + name][heads] for name in ("weight", "bias"))
        flat = self.model.normalise(x).flatten(1, -2)
        y = torch.matmul(flat, weight) + bias[:, None]
        return y.view(len(y), *x.shape[1:-1], -1)

    def _attend(self, layer: int, own: Sequence[Tensor], heads: Heads) -> Tensor:
        """z of some heads from q, k and v at the live positions, Float[head ... batch live d_head], and the clean keys
        and values before them."""
        model = self.model
        start = self.start
        (q, k, v) = own
        if start:
            x = self.cache.residual[layer][None, :, :start]
            fixed = (self._project(c, layer, x, heads) for c in "kv")
            lead = q.shape[1:-3]
            k, v = (
                torch.cat([f.view(len(f), *[1] * len(lead), *f.shape[1:]).expand(-1, *lead, *f.shape[1:]), y], -2)
                for f, y in zip(fixed, (k, v), strict=True)
            )
        q = model.place("q", layer, q, self.positions[:, start:])
        k = model.place("k", layer, k, self.positions)
        return model.attend(q, k, v, model.window(layer, self.cache.mask[:, start:], start))
