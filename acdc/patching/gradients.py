"""The gradient of the metric at the input of every receiver, layer by layer from the last.

Only the residual stream is kept for all layers; each layer is computed again from it, at the live positions only, since
no sender's output changes before them.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from acdc.graph.graph import QKV
from acdc.model.activations import Activations
from acdc.model.transformer import Transformer, positions_of
from acdc.patching.activations import ActivationCache
from acdc.patching.metrics import Metric


class Gradient(NamedTuple):
    """The gradient of the metric, summed over the prompts, at receivers that read the same stream."""

    receivers: slice  # of receiver indices
    inputs: Tensor  # Float[receiver batch live d_model], at each receiver's input, before its norm
    written: Tensor  # Float[batch live d_model], at the output of their nodes; for the logits, at the final stream


def receiver_gradients(
    model: Transformer,
    cache: ActivationCache,
    at: Activations,
    residual: Tensor,
    metric: Metric,
    cut: tuple[str, int] | None = None,
) -> Iterator[Gradient]:
    """Yield the gradient at the logits, then per layer, from the last, at the MLP and at all queries, keys and values.

    Args:
        at, residual: a run as `Transformer.run_inputs` returns it; it equals the clean run before the live positions
        metric: a metric of `cache`
        cut: ("z" or "mlp", layer) whose output was set by hand, so that no gradient flows back through it
    """
    graph = model.config.graph()
    start = cache.first
    b = cache.rows[:, 0]
    t = cache.rows[:, 1] - start
    final = residual[-1][:, start:]
    x = final[b, t].detach().requires_grad_()
    with torch.enable_grad():
        value = metric(model.normalise(x)).sum()
    flow = torch.zeros_like(final)
    flow[b, t] = torch.autograd.grad(value, x)[0]
    last = graph.receiver_index["logits"]
    yield Gradient(slice(last, last + 1), flow[None], flow)
    for layer in reversed(range(graph.n_layers)):
        first = graph.receiver_index[f"a{layer}.h0<q>"]
        mlps = first + 3 * graph.n_heads
        written = flow
        if graph.mlp:
            nodes = range(len(graph.mlp_names(layer)))
            x = model.received(graph.receivers[mlps], at, residual)[:, start:].detach()
            x = x.expand(len(nodes), *x.shape).requires_grad_()
            with torch.enable_grad():
                y = model.mlp_nodes(layer, nodes, x)
            (inputs,) = torch.autograd.grad(
                y, x, (torch.zeros_like(flow) if cut == ("mlp", layer) else flow).expand_as(y)
            )
            yield Gradient(slice(mlps, mlps + len(nodes)), inputs, flow)
            flow = flow + inputs.sum(0)
        if not graph.parallel:
            written = flow
        if model.config.post_norm:
            g = (written * model.weights[f"layers.{layer}.o.norm"])[None]
            written = _through_post_norm(model, layer, at.z[layer][:, :, start:], g)[0]
        if cut == ("z", layer):
            continue
        heads = _heads(model, layer, cache, residual[layer], written)
        yield Gradient(slice(first, mlps), heads, written)
        flow = flow + heads.sum(0)


def added_by(model: Transformer, cache: ActivationCache, at: Activations, n: int) -> Iterator[tuple[int, Tensor]]:
    """Yield how the stream of a run changes from `first` on where one of the first n senders alone is ablated, to first
    order, as blocks (`Transformer.written_by`)."""

    def added(layer: int, change: Tensor) -> Tensor:
        if not model.config.post_norm:
            return change
        z = at.z[layer][:, :, cache.first :]
        return _through_post_norm(model, layer, z, change) * model.weights[f"layers.{layer}.o.norm"]

    return model.written_by(cache.difference, n, added)


def _through_post_norm(model: Transformer, layer: int, z: Tensor, changes: Tensor) -> Tensor:
    """The derivative, without its scale, of the norm of what a layer's heads write together, Float[any batch pos
    d_model] in place; it is symmetric, and turns changes into changes and gradients into gradients."""
    together = model.written_together(layer, z) + model.weights[f"layers.{layer}.o.bias"]
    return _through_norm(model, together, model.rms_norm(together), changes)


def _heads(model: Transformer, layer: int, cache: ActivationCache, x: Tensor, written: Tensor) -> Tensor:
    """Gradients at the queries, keys and values of a layer: Float[3·head batch live d_model]."""
    start = cache.first
    w = model.weights
    h = model.read(x)
    positions = positions_of(cache.pad, x.shape[1])[:, None]
    mask = model.window(layer, cache.mask[:, start:], start)[:, None]
    q, k, v = (model.project_heads(c, layer, h[:, start:] if c == "q" else h) for c in QKV)
    live = [y.detach().requires_grad_() for y in (q, k[:, :, start:], v[:, :, start:])]
    with torch.enable_grad():
        q = model.place("q", layer, live[0], positions[..., start:])
        k = model.place("k", layer, torch.cat([k[:, :, :start], live[1]], 2), positions)
        v = torch.cat([v[:, :, :start], live[2]], 2)
        z = model.attend(q, k, v, mask)
    to_z = torch.einsum("btd,hed->bhte", written, w[f"layers.{layer}.o.weight"])
    gradients = torch.autograd.grad(z, live, to_z)
    out = x.new_empty(3, model.config.n_heads, len(x), x.shape[1] - start, x.shape[2])
    for into, c, g in zip(out, QKV, gradients, strict=True):
        weight = w[f"layers.{layer}.{c}.weight"].transpose(1, 2)
        if model.config.joint_head_norm and c != "v":
            root, gradient = model.over_heads(c, layer, h[:, start:])
            along = (g * live[QKV.index(c)].detach()).sum(-1, keepdim=True) * (not model.constant_scale)
            g = g * w[f"layers.{layer}.{c}.norm"][:, None]
            into[:] = ((g @ weight - along * gradient[:, None]) / root[:, None]).transpose(0, 1)
        else:
            torch.matmul(g.transpose(0, 1).flatten(1, 2), weight, out=into.flatten(1, 2))
    out = out.flatten(0, 1)
    return _through_norm(model, x[:, start:], h[:, start:], out) if model.config.pre_norm else out


def _through_norm(model: Transformer, x: Tensor, h: Tensor, gradients: Tensor) -> Tensor:
    """Turn gradients at normalised rows h Float[batch pos d_model], in place, into gradients at the rows x themselves.

    For a layer norm that is (g − mean(g) − h mean(h g)) / σ, without the second term for RMSNorm, and without the
    third if σ counts as a constant.
    """
    if model.config.norm == "none":
        return gradients
    aligned = torch.einsum("rbtd,btd->rbt", gradients, h) / x.shape[-1]
    if model.config.norm == "layer":
        gradients -= gradients.mean(-1, keepdim=True)
        spread = x.var(-1, unbiased=False)
    else:
        spread = x.square().mean(-1)
    scale = (spread + model.config.norm_eps).rsqrt()
    for g, a in zip(gradients, aligned, strict=True):  # one receiver at a time, to need no second table
        if not model.constant_scale:
            g.addcmul_(h, a[..., None], value=-1)
        g.mul_(scale[..., None])
    return gradients
