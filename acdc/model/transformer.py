"""One transformer, in pieces that can be evaluated separately: head, MLP, output layer.

Axes, in every docstring of the package: `batch` prompts, `pos` positions, `layer`, `head`, `d_model` residual stream,
`d_head` head, `d_mlp` MLP, `vocab` output columns; `...` any leading axes.

Conventions: activations are row vectors, `y = x @ W + b`. The scale and shift of every norm are folded into the weights
that read it, and the attention scale into the query weights, so that a norm has no parameters and a score is `q · k`.
The unembedding is centred over the vocabulary, and its mean kept separately: log-probabilities stay the same and lose
less to rounding in float32. Where logits have a soft cap, log-probabilities would change, and the mean is taken as 0.

Some families normalise what a layer's heads write together, and what its MLP writes, before it is added to the stream
(`post_norm`). An MLP's output is then what is added. A head has no output of its own: it writes a summand of what is
normalised. Where the queries of all heads are normalised together, or the keys (`joint_head_norm`), each head takes
those that all heads would have from its own input: like every norm before a head, this one belongs to the receiver.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from acdc.errors import ModelError
from acdc.graph.graph import Receiver, Sender
from acdc.model.activations import Activations
from acdc.model.config import ACTIVATIONS, ModelConfig

VOCAB_BLOCK = 2048  # output columns per block of the log-sum-exp: the block of logits stays in a CPU's cache
LOGITS_BYTES = 256 << 20  # bound on the block of logits elsewhere


def positions_of(pad: Tensor, n_pos: int) -> Tensor:
    """The position of every column, Int[batch pos]; the first one after the padding has 0."""
    return (torch.arange(n_pos, device=pad.device) - pad[:, None]).clamp(min=0)


def capped(x: Tensor, cap: float) -> Tensor:
    """Scores or logits with a soft cap, cap · tanh(x / cap); as they are if it is 0: Float[...] to the same shape."""
    return cap * (x / cap).tanh() if cap else x


def _of(weight: Tensor, heads: Sequence[int]) -> Tensor:
    """A weight of some heads, Float[head ...]."""
    return torch.stack([weight[h] for h in heads]) if len(heads) > 1 else weight[heads[0]][None]


def is_finite(x: Tensor) -> bool:
    """Whether no number is NaN or infinite. A finite sum says so in a twentieth of the time, and without a copy."""
    return bool(torch.isfinite(x.sum())) or bool(torch.isfinite(x).all())


class Transformer:
    """A transformer with named weights (`ModelConfig.shapes`), checked, on one device, in one dtype."""

    constant_scale = False  # whether a backward pass takes what the norms divide by as a constant

    def __init__(
        self, config: ModelConfig, weights: dict[str, Tensor], source: str = "model", own: bool = False
    ) -> None:
        """`own` says that nobody else uses the weights, so that the unembedding is centred in place."""
        shapes = config.shapes()
        for name, shape in shapes.items():
            if name not in weights:
                raise ModelError(f"{source}: tensor {name!r} is missing")
            if tuple(weights[name].shape) != shape:
                raise ModelError(f"{source}: tensor {name!r} has shape {tuple(weights[name].shape)}, not {shape}")
            if not is_finite(weights[name]):
                raise ModelError(f"{source}: tensor {name!r} contains NaN or infinity")
        self.config = config
        self.weights = {name: weights[name] for name in shapes}
        self.mlp_norms: dict[int, tuple[Tensor, Tensor]] = {}  # by layer, where they are known: `Weights.mlp_norms`
        w_u = weights["unembed.weight"]
        b_u = weights["unembed.bias"]
        self.device = w_u.device
        self.dtype = w_u.dtype
        # Whether a calculation takes its number of operations, not their size: true of small operations on a GPU.
        self.few_launches = self.device.type != "cpu"
        self.unembed_mean = torch.zeros_like(w_u[:, 0]) if config.logit_cap else w_u.mean(1)
        self.unembed_bias_mean = torch.zeros_like(b_u[0]) if config.logit_cap else b_u.mean()
        centred = w_u.sub_(self.unembed_mean[:, None]) if own else w_u - self.unembed_mean[:, None]
        self.weights["unembed.weight"] = centred.T.contiguous()  # Float[vocab d_model]
        self.weights["unembed.bias"] = b_u - self.unembed_bias_mean
        for name in ("unembed.weight", "unembed.bias"):
            if not is_finite(self.weights[name]):
                raise ModelError(f"{source}: tensor {name!r} is too large to be centred in {w_u.dtype}")

    def attention_mask(self, pad: Tensor, n_pos: int) -> Tensor:
        """Which keys each query may attend to, without windows: Bool[batch query key]."""
        at = torch.arange(n_pos, device=pad.device)
        real = at >= pad[:, None]
        # A padding position attends to itself, so that no row is empty.
        mask = real[:, None, :] | torch.eye(n_pos, dtype=torch.bool, device=pad.device)
        return mask & (at[None, :] <= at[:, None]) if self.config.causal else mask

    def window(self, layer: int, mask: Tensor, first: int = 0) -> Tensor:
        """Restrict a mask Bool[... query key], whose queries begin at position `first`, to the window of a layer."""
        size = self.config.windows[layer] if self.config.windows else 0
        if not size:
            return mask
        n_query, n_key = mask.shape[-2:]
        query = torch.arange(first, first + n_query, device=mask.device)[:, None]
        return mask & (query - torch.arange(n_key, device=mask.device) < size)

    def normalise(self, x: Tensor) -> Tensor:
        """Normalise a stream, without scale and shift: Float[... d_model] to the same shape."""
        if self.config.norm == "none":
            return x
        if self.config.norm == "rms":
            return self.rms_norm(x)
        return F.layer_norm(x, x.shape[-1:], eps=self.config.norm_eps)

    def read(self, x: Tensor) -> Tensor:
        """What heads and MLPs see of the stream, without scale and shift: Float[... d_model] to the same shape."""
        return self.normalise(x) if self.config.pre_norm else x

    def normalise_part(self, part: Tensor, whole: Tensor) -> Tensor:
        """What a part of inputs Float[... d_model] adds to `normalise` of the whole, by the scale of the whole."""
        if self.config.norm == "none":
            return part
        if self.config.norm == "layer":
            part = part - part.mean(-1, keepdim=True)
            whole = whole - whole.mean(-1, keepdim=True)
        return part * (whole.square().mean(-1, keepdim=True) + self.config.norm_eps).rsqrt()

    def rms_norm(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """Divide vectors Float[... d] by their root mean square, and multiply by a scale Float[d] if there is one."""
        return F.rms_norm(x, x.shape[-1:], scale, self.config.norm_eps)

    def project(self, kind: str, layer: int, heads: Sequence[int], x: Tensor, positions: Tensor) -> Tensor:
        """q, k or v (`kind`) of some heads, each from an input of its own: Float[head ... batch pos d_model], Int[batch
        pos] to Float[head ... batch pos d_head]."""
        w = _of(self.weights[f"layers.{layer}.{kind}.weight"], heads)
        b = _of(self.weights[f"layers.{layer}.{kind}.bias"], heads)
        h = self.read(x).flatten(1, -2)
        y = torch.baddbmm(b[:, None], h, w)
        if self.config.joint_head_norm and kind != "v":
            norm = _of(self.weights[f"layers.{layer}.{kind}.norm"], heads)
            y = y * norm[:, None] / self.over_heads(kind, layer, h)[0]
        return self.place(kind, layer, y.view(*x.shape[:-1], -1), positions)

    def project_heads(self, kind: str, layer: int, h: Tensor) -> Tensor:
        """All heads' q, k or v before `place`: normalised Float[batch pos d_model] to Float[batch head pos d_head]."""
        at = f"layers.{layer}.{kind}."
        y = torch.einsum("btd,hde->bhte", h, self.weights[at + "weight"]) + self.weights[at + "bias"][:, None]
        if self.config.joint_head_norm and kind != "v":
            y = y * self.weights[at + "norm"][:, None] / self.over_heads(kind, layer, h)[0][:, None]
        return y

    def over_heads(self, kind: str, layer: int, h: Tensor) -> tuple[Tensor, Tensor]:
        """The root mean square of the queries or keys that all heads would have from one input, Float[any row d_model]
        to Float[any row 1], and its gradient there, Float[any row d_model]."""
        at = f"layers.{layer}.{kind}."
        w = self.weights[at + "weight"].transpose(0, 1).flatten(1)
        # A product for each of `any`, so that no bit depends on how many there are.
        y = torch.bmm(h, w.expand(len(h), -1, -1)) + self.weights[at + "bias"].flatten()
        root = (y.square().mean(-1, keepdim=True) + self.config.norm_eps).sqrt()
        return root, y @ w.T / (root * y.shape[-1])

    def place(self, kind: str, layer: int, y: Tensor, positions: Tensor) -> Tensor:
        """Normalise and rotate queries or keys Float[... pos d_head]; values stay as they are."""
        if kind == "v":
            return y
        if self.config.head_norm:
            y = self.rms_norm(y, self.weights[f"layers.{layer}.{kind}.norm"])
        return self.rotate(layer, y, positions)

    def unplace(self, kind: str, layer: int, z: Tensor, y: Tensor, positions: Tensor) -> Tensor:
        """Vectors Float[... pos d_head] whose products with queries or keys y before `place` are those of z after it. A
        norm of queries and keys is taken as linear, by its scale at y."""
        z = self.rotate(layer, z, -positions)
        if not self.config.head_norm:
            return z
        scale = (y.square().mean(-1, keepdim=True) + self.config.norm_eps).rsqrt()
        return z * scale * self.weights[f"layers.{layer}.{kind}.norm"]

    def rotate(self, layer: int, y: Tensor, positions: Tensor) -> Tensor:
        """Rotate queries or keys Float[... pos d_head] by their positions Int[... pos], if the model does."""
        if not self.config.rotary:
            return y
        local = self.config.local_rotary and self.config.windows[layer]
        # Angles in float32 whatever the dtype, as in Hugging Face's code.
        angles = positions[..., None].float() * self.weights[f"rotary.{'local' if local else 'frequencies'}"].float()
        cos = angles.cos().to(y.dtype)
        sin = angles.sin().to(y.dtype)
        half = self.config.rotary // 2
        a = y[..., :half]
        b = y[..., half : 2 * half]
        rest = y[..., 2 * half :]
        return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """z of heads: q Float[... query d_head], k and v Float[... key d_head], mask Bool[... query key]."""
        return self.pattern(q, k, mask) @ v

    def pattern(self, q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
        """How much each query attends to each key, arguments as of `attend`: Float[... query key]."""
        scores = capped(q @ k.transpose(-1, -2), self.config.score_cap)
        return scores.masked_fill(~mask, -torch.inf).softmax(-1)

    def write(self, layer: int, heads: Sequence[int], z: Tensor) -> Tensor:
        """What some heads write, without the layer's output bias: z Float[head ... d_head] to Float[head ...
        d_model]."""
        w = _of(self.weights[f"layers.{layer}.o.weight"], heads)
        return (z.flatten(1, -2) @ w).view(*z.shape[:-1], -1)

    def written_together(self, layer: int, z: Tensor) -> Tensor:
        """The sum of what a layer's heads write: z Float[batch head pos d_head] to Float[batch pos d_model]."""
        return torch.einsum("bhte,hed->btd", z, self.weights[f"layers.{layer}.o.weight"])

    def normalised_together(self, layer: int, written: Tensor) -> Tensor:
        """What a layer's heads add to the stream by their norm if they write a sum, Float[... d_model]: same shape."""
        return self.rms_norm(written + self.weights[f"layers.{layer}.o.bias"], self.weights[f"layers.{layer}.o.norm"])

    def after_heads(self, layer: int, x: Tensor, written: Tensor) -> Tensor:
        """The stream Float[... d_model] after a layer's heads, which write a sum Float[... d_model], added to it."""
        if self.config.post_norm:
            return x + self.normalised_together(layer, written)
        return x + written + self.weights[f"layers.{layer}.o.bias"]

    def moved(self, layer: int, z: Tensor, change: Tensor) -> Tensor:
        """How the stream changes when what a layer's heads write together does: z Float[batch head pos d_head] of all
        of them before, change Float[... batch pos d_model] to the same shape."""
        if not self.config.post_norm:
            return change
        before = self.written_together(layer, z)
        return self.normalised_together(layer, before + change) - self.normalised_together(layer, before)

    def mlp(self, layer: int, x: Tensor) -> Tensor:
        """What an MLP adds to the stream, with its output bias: Float[... d_model] to the same shape."""
        at = f"layers.{layer}.mlp_"
        w = self.weights
        flat = self.read(x).flatten(0, -2)
        hidden = torch.addmm(w[at + "in.bias"], flat, w[at + "in.weight"])
        if self.config.gated:
            hidden = self.gate(hidden, torch.addmm(w[at + "gate.bias"], flat, w[at + "gate.weight"]))
        else:
            hidden = self.activate(hidden)
        out = torch.addmm(w[at + "out.bias"], hidden, w[at + "out.weight"]).view(x.shape)
        return self.rms_norm(out, w[at + "out.norm"]) if self.config.post_norm else out

    def mlp_nodes(self, layer: int, nodes: Sequence[int], x: Tensor) -> Tensor:
        """What some nodes of an MLP add to the stream, each from an input of its own: Float[node ... d_model] to the
        same shape. Here an MLP is one node."""
        return self.mlp(layer, x[0])[None]

    def activate(self, x: Tensor) -> Tensor:
        """The activation function of the MLPs: Float[...] to the same shape."""
        return ACTIVATIONS[self.config.activation](x)

    def gate(self, x: Tensor, gate: Tensor) -> Tensor:
        """The hidden units of a gated MLP from their linear half and their gate, before its activation."""
        return x * self.activate(gate)

    # --- output layer, on normalised final rows `h = normalise(x)` ------------------------------------------------

    def logits(self, h: Tensor) -> Tensor:
        """The checkpoint's logits: Float[... d_model] to Float[... vocab]."""
        centred = F.linear(h, self.weights["unembed.weight"], self.weights["unembed.bias"])
        return capped(centred + (h @ self.unembed_mean + self.unembed_bias_mean)[..., None], self.config.logit_cap)

    def centred_logits(self, h: Tensor, ids: Tensor) -> Tensor:
        """Logits of some ids, less the mean of all unless capped: h Float[... row d_model], ids Int[row k]."""
        rows = self.weights["unembed.weight"][ids]
        logits = torch.einsum("...rd,rkd->...rk", h, rows) + self.weights["unembed.bias"][ids]
        return capped(logits, self.config.logit_cap)

    def logit_blocks(self, h: Tensor, rows: int | None = None) -> Iterator[Tensor]:
        """Yield the centred logits in blocks of the vocabulary, Float[row d_model] to Float[row block]: blocks for so
        many `rows`, by default those of h."""
        size = max(VOCAB_BLOCK, LOGITS_BYTES // ((rows or len(h)) * h.itemsize)) if self.few_launches else VOCAB_BLOCK
        weights = self.weights["unembed.weight"].split(size)
        biases = self.weights["unembed.bias"].split(size)
        for w, b in zip(weights, biases, strict=True):
            yield capped(torch.addmm(b, h, w.T), self.config.logit_cap)

    def logsumexp(self, h: Tensor) -> Tensor:
        """Log-sum-exp of the centred logits, in blocks of the vocabulary: Float[... d_model] to Float[...]."""
        parts = [block.logsumexp(1) for block in self.logit_blocks(h.reshape(-1, h.shape[-1]))]
        whole = torch.stack(parts).logsumexp(0) if len(parts) > 1 else parts[0]
        return whole.view(h.shape[:-1])

    def expected_unembedding(self, h: Tensor) -> Tensor:
        """Σ_v p(v) W_U[v], with the prediction p at each row of a model whose logits have no cap: Float[row d_model] to
        the same shape."""
        w = self.weights["unembed.weight"]
        b = self.weights["unembed.bias"]
        parts = [F.linear(rows, w, b).softmax(-1) @ w for rows in h.split(256)]  # bounds the rows × vocabulary table
        return torch.cat(parts)

    def sampled_unembedding(self, h: Tensor, n: int) -> Tensor:
        """W_U of n tokens drawn from the prediction at each row: Float[row d_model] to Float[row n d_model]."""
        w = self.weights["unembed.weight"]
        b = self.weights["unembed.bias"]
        drawn = torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(h.dtype)
        parts = []
        for rows in h.split(256):
            # Summed on the CPU: CUDA has no fixed order for it, so that other tokens could be drawn.
            cumulative = F.linear(rows, w, b).softmax(-1).cpu().cumsum(-1)
            ids = torch.searchsorted(cumulative, drawn.expand(len(rows), n).contiguous())
            parts.append(w[ids.clamp(max=len(w) - 1).to(w.device)])
        return torch.cat(parts)

    def run(self, tokens: Tensor, pad: Tensor) -> tuple[Activations, Tensor]:
        """A plain forward pass of tokens Int[batch pos] with left padding Int[batch]; returns as `run_inputs`."""
        inputs = self.weights["token.weight"][tokens][None]
        if not self.config.rotary:
            position = self.weights["position.weight"][positions_of(pad, tokens.shape[1])][None]
            inputs = torch.cat([inputs, position]) if self.config.split_position else inputs + position
        return self.run_inputs(inputs, pad)

    def run_inputs(
        self, inputs: Tensor, pad: Tensor, edit: Callable[[str, int, Tensor], Tensor] | None = None
    ) -> tuple[Activations, Tensor]:
        """A forward pass from the inputs' outputs, Float[input batch pos d_model].

        `edit` takes "z" or "mlp", a layer and its outputs, and returns the outputs to use. Returns the outputs of all
        senders, and the stream before each layer and after the last one, Float[layer+1 batch pos d_model].
        """
        graph = self.config.graph()
        x = inputs.sum(0)
        mask = self.attention_mask(pad, inputs.shape[2])[:, None]
        positions = positions_of(pad, inputs.shape[2])[:, None]  # the same for every head
        stream = [x]
        zs = []
        mlps = []
        for layer in range(self.config.n_layers):
            h = self.read(x)
            q, k, v = (self.project_heads(c, layer, h) for c in "qkv")
            q = self.place("q", layer, q, positions)
            k = self.place("k", layer, k, positions)
            z = self.attend(q, k, v, self.window(layer, mask))
            zs.append(edit("z", layer, z) if edit else z)
            before = x
            x = self.after_attention(layer, x, zs[-1])
            if self.config.d_mlp:
                read = before if self.config.parallel else x
                nodes = range(len(graph.mlp_names(layer)))
                written = self.mlp_nodes(layer, nodes, read.expand(len(nodes), *x.shape))
                mlps.append(edit("mlp", layer, written) if edit else written)
                x = x + mlps[-1].sum(0)
            stream.append(x)
        mlp = torch.cat(mlps) if mlps else x.new_zeros(0, *x.shape)
        return Activations(inputs, torch.stack(zs), mlp), torch.stack(stream)

    def after_attention(self, layer: int, x: Tensor, z: Tensor) -> Tensor:
        """The stream Float[batch pos d_model] after a layer's heads, z Float[batch head pos d_head], wrote to it."""
        return self.after_heads(layer, x, self.written_together(layer, z))

    def received(self, receiver: Receiver, run: Activations, stream: Tensor) -> Tensor:
        """What a receiver reads in a run as `run_inputs` returns it, before its norm: Float[batch pos d_model]."""
        x = stream[receiver.layer]
        if receiver.kind == "mlp" and not self.config.parallel:
            x = self.after_attention(receiver.layer, x, run.z[receiver.layer])
        return x

    def share(self, layer: int, z: Tensor, written: Tensor) -> Tensor:
        """What heads add to the stream of what they write, Float[... batch pos d_model], when z Float[batch head pos
        d_head] of the layer's heads says what the norm divides by; so that all heads together add what the layer does.
        """
        if not self.config.post_norm:
            return written
        together = self.written_together(layer, z) + self.weights[f"layers.{layer}.o.bias"]
        return self.normalise_part(written, together) * self.weights[f"layers.{layer}.o.norm"]

    def written(self, activations: Activations, sender: Sender) -> Tensor:
        """What one sender adds to the residual stream of a run: Float[batch pos d_model]."""
        if sender.kind == "head":
            z = activations.z[sender.layer]
            written = self.write(sender.layer, [sender.head], z[None, :, sender.head])[0]
            return self.share(sender.layer, z, written)
        if sender.kind == "input":
            return activations.inputs[sender.head]
        return activations.mlp[self.config.graph().mlps(sender.layer)][sender.head]

    def written_by(
        self, a: Activations, n: int, added: Callable[[int, Tensor], Tensor]
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield what the first n senders add to the stream as blocks: first sender, Float[sender batch pos d_model].

        `added` takes a layer and what its heads write, and returns what they add. The last block may reach beyond n.
        """
        yield 0, a.inputs
        first = len(a.inputs)
        graph = self.config.graph()
        for layer in range(self.config.n_layers):
            if first < n:
                w_o = self.weights[f"layers.{layer}.o.weight"]
                yield first, added(layer, torch.einsum("bhte,hed->hbtd", a.z[layer], w_o))
            first += self.config.n_heads
            if self.config.d_mlp:
                if first < n:
                    yield first, a.mlp[graph.mlps(layer)]
                first += len(graph.mlp_names(layer))
