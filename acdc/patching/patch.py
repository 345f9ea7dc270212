"""Run the whole model with any set of edges or nodes, or from one changed node on; differentiable.

Receiver input = Σ kept edges: sender's current output + Σ removed edges: sender's ablated output + biases. Where a
layer's heads are normalised together, a receiver reads the norm of this sum over the heads of each layer. Only live
positions are computed; before them everything is clean.
"""

from collections import defaultdict
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
Group = int | None  # senders that add up linearly: the heads of a layer, before their norm, or None for all others
Shifted = Callable[[Group, Sequence[int], Tensor], Tensor]
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
        return self.run_edges(graph, edges)[0]

    def edge_gradients(self, graph: Graph, edges: Tensor, metric: Metric) -> Tensor:
        """Gradients of a metric, summed over the prompts, at the weights of edges as in `patched_rows`, in their shape;
        0 for edges of nodes that nothing reads. The weights are by span if the cache has spans.

        The gradient at an edge's weight is what its sender adds times the gradient at the sum of what all senders of
        its group add to its receiver. So only the latter needs a backward pass, which then keeps no senders' outputs
        per receiver.
        """
        to: dict[Group, list[int]] = defaultdict(list)
        offsets: dict[Group, list[Tensor]] = defaultdict(list)

        def shifted(group: Group, receivers: Sequence[int], added: Tensor) -> Tensor:
            to[group].extend(receivers)
            offsets[group].append(torch.zeros_like(added, requires_grad=True))
            return added + offsets[group][-1]

        with torch.enable_grad():
            rows, senders, added = self.run_edges(graph, edges, shifted=shifted)
            gradients = iter(torch.autograd.grad(metric(rows).sum(), [x for of in offsets.values() for x in of]))
        out = edges.new_zeros(edges.shape)
        for group, receivers in to.items():
            gradient = torch.cat([next(gradients) for _ in offsets[group]])
            product = self.cache.products(torch.cat(added[group]).detach(), gradient)
            out[self._index(senders[group])[:, None], self._index(receivers)] = product
        return out * torch.as_tensor(graph.edges).to(out).view(*graph.edges.shape, *[1] * (edges.ndim - 2))

    def run_edges(
        self, graph: Graph, edges: Tensor, received: Received | None = None, shifted: Shifted | None = None
    ) -> tuple[Tensor, dict[Group, list[int]], dict[Group, list[Tensor]]]:
        """The rows of `with_edges`, the senders computed, and what their kept edges add over removed ones, in blocks
        Float[sender batch live d_model]. `received` may change what receivers read, `shifted` what the edges of a group
        add to that, before its norm, Float[receiver batch live d_model]."""
        model = self.model
        cache = self.cache
        kept = (edges.detach() != 0).cpu().numpy()
        index = graph.sender_index
        receivers = graph.receiver_index
        ablated = cache.ablated.inputs[:, :, self.start :]
        current: dict[Group, list[Tensor]] = defaultdict(list)  # what kept edges add over removed ones
        current[None] = [cache.clean.inputs[:, :, self.start :] - ablated]
        senders: dict[Group, list[int]] = defaultdict(list)
        senders[None] = list(range(len(ablated)))
        x = ablated.sum(0)  # the stream with all edges removed

        def receive(to: Sequence[int], x: Tensor) -> Tensor:
            for group, of in senders.items():
                weight = edges.index_select(0, self._index(of)).index_select(1, self._index(to))
                added = self._added(weight, torch.cat(current[group]))
                added = added if shifted is None else shifted(group, to, added)
                if group is not None:
                    added = model.moved(group, cache.ablated.z[group][:, :, self.start :], added)
                x = x + added
            return x if received is None else received(to, x)

        for layer in range(graph.n_layers):
            heads = [h for h in range(graph.n_heads) if kept[index[f"a{layer}.h{h}"]].any()]
            which = self._index(heads) if len(heads) < graph.n_heads else ALL
            z = cache.ablated.z[layer][:, :, self.start :]
            w_o = model.weights[f"layers.{layer}.o.weight"]
            before = x
            x = model.after_heads(layer, x, torch.einsum("bhte,hed->hbtd", z, w_o).sum(0))
            if heads:
                group = layer if model.config.post_norm else None
                new = receive([receivers[f"a{layer}.h{h}<{c}>"] for c in QKV for h in heads], before)
                own = [self._project(c, layer, y, which) for c, y in zip(QKV, new.chunk(3), strict=True)]
                delta = self._attend(layer, own, which) - z[:, which].transpose(0, 1)
                current[group].append(delta @ w_o[which][:, None])
                senders[group] += [index[f"a{layer}.h{h}"] for h in heads]
            if graph.mlp:
                removed = cache.ablated.mlp[graph.mlps(layer), :, self.start :]
                names = graph.mlp_names(layer)
                if nodes := [i for i, name in enumerate(names) if kept[index[name]].any()]:
                    new = receive([receivers[names[i]] for i in nodes], before if graph.parallel else x)
                    written = model.mlp_nodes(layer, nodes, new)
                    current[None].append(written - removed[self._index(nodes)])
                    senders[None] += [index[names[i]] for i in nodes]
                x = x + removed.sum(0)
        (final,) = receive([receivers["logits"]], x)
        return self._rows(final), senders, current

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
            before = x
            written = torch.einsum("hbte,hed->btd", z, model.weights[f"layers.{layer}.o.weight"])
            x = model.after_heads(layer, x, written)
            if graph.mlp:
                written = model.mlp(layer, before if graph.parallel else x)
                x = x + mixed(written, ablated.mlp[layer][:, self.start :], nodes[index[f"m{layer}"]])
        return self._rows(x)

    def without_edge(self, r: Receiver, written: Tensor) -> Tensor:
        """Rows of the full model without one edge, for each of some edges into a receiver: Float[edge row d_model].
        `written` is how what it reads changes (`ActivationCache.changes`), Float[edge batch live d_model]."""
        model = self.model
        cache = self.cache
        layer = r.layer
        x = cache.residual[layer][:, self.start :]
        if r.kind == "logits":
            return self._rows(x + written)
        if r.kind == "mlp":
            clean = cache.clean.mlp[model.config.graph().mlps(layer), :, self.start :]
            x = x if model.config.parallel else cache.residual[layer + 1][:, self.start :] - clean.sum(0)
            return self.without_node(
                layer, model.mlp_nodes(layer, [r.head], (x + written)[None])[0] - clean[r.head], False
            )
        head = slice(r.head, r.head + 1)
        own = []
        for c in QKV:
            if c == r.kind:
                own.append(self._project(c, layer, (x + written)[None], head))
            else:
                y = self._project(c, layer, x[None], head)
                own.append(y[:, None].expand(-1, len(written), *y.shape[1:]))
        clean = cache.clean.z[layer][:, :, self.start :]
        z = self._attend(layer, own, head)[0] - clean[:, r.head]
        return self.without_node(layer, model.moved(layer, clean, model.write(layer, [r.head], z[None])[0]), True)

    def without_node(self, layer: int, written: Tensor, head: bool) -> Tensor:
        """Rows of the full model without one node, for each of some heads of a layer or for its MLP: Float[node row
        d_model]. `written` is how the stream changes behind the nodes, Float[node batch live d_model]."""
        model = self.model
        x = self.cache.residual[layer + 1][:, self.start :] + written
        if head and model.config.d_mlp and not model.config.parallel:
            clean = self.cache.clean.mlp[model.config.graph().mlps(layer), :, self.start :].sum(0)
            x = x + (model.mlp(layer, x - clean) - clean)
        for above in range(layer + 1, model.config.n_layers):
            own = [self._project(c, above, x[None], ALL) for c in QKV]
            z = self._attend(above, own, ALL)
            before = x
            together = torch.einsum("h...te,hed->...td", z, model.weights[f"layers.{above}.o.weight"])
            x = model.after_heads(above, x, together)
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
        flat = self.model.read(x).flatten(1, -2)
        y = torch.matmul(flat, weight) + bias[:, None]
        if self.model.config.joint_head_norm and kind != "v":
            root, _ = self.model.over_heads(kind, layer, flat)
            y = y * self.model.weights[at + "norm"][heads][:, None] / root
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
