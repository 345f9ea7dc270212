"""Transcoders, dictionaries of the features of MLPs (Dunefsky et al. 2024), in circuit-tracer's and SAELens's layouts.

What an encoder reads is named by a hook of TransformerLens. One of them, ln2.hook_normalized, lies behind the scale and
shift of a layer norm, but before the scale of an RMS norm. Only safetensors are read.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from acdc.errors import ModelError
from acdc.io.schema import Name, S, Strict, Whole, validated
from acdc.io.yaml_file import read_yaml
from acdc.model.config import ModelConfig
from acdc.model.find import BUNDLED, read_json, reading
from acdc.model.huggingface import FLOATS
from acdc.model.transformer import Transformer, is_finite

UNREAD = (".bin", ".ckpt", ".npz", ".pkl", ".pt", ".pth")
EXPECTED = "circuit-tracer's config.yaml and layer_*.safetensors, or SAELens's cfg.json and sae_weights.safetensors"


@dataclass(frozen=True)
class Transcoder:
    """The features of one MLP's transcoder. Its output bias and skip connection write what no feature does, so they
    aren't read."""

    encoder: Tensor  # Float[d_model feature]
    bias: Tensor  # Float[feature]
    decoder: Tensor  # Float[feature d_model]
    threshold: Tensor | None  # Float[feature], jumprelu: pre-activation where above it, else 0
    top: int  # topk: only the k largest pre-activations of all features count, those above 0; 0: all
    reads: str  # "stream" before the MLP's norm, "normalised" after it without scale and shift, "norm" with them


class _Set(Strict):
    """What counts of circuit-tracer's config.yaml, which is for all layers."""

    feature_input_hook: Name
    feature_output_hook: Name
    model_kind: Literal["transcoder_set"] = "transcoder_set"
    activation: Literal["relu", "jump_relu", "jumprelu", "topk"] | None = None
    k: Whole | None = None


class _Single(Strict):
    """What counts of SAELens's cfg.json and its metadata. What would change the computation must have its default."""

    architecture: Literal["transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"]
    hook_name: Name
    hook_name_out: Name
    activation_fn: Literal["relu", "topk"] = "relu"
    activation_fn_kwargs: dict[str, Any] | None = None
    k: Whole | None = None
    apply_b_dec_to_input: Literal[False] = False
    normalize_activations: Literal["none", False] | None = None
    reshape_activations: Literal["none"] | None = None
    rescale_acts_by_decoder_norm: Literal[False] = False
    model_from_pretrained_kwargs: dict[str, Any] | None = None


@dataclass(frozen=True)
class _Stored:
    """Where a transcoder is, and what its config says of it."""

    config: Path
    file: Path
    hooks: tuple[str, str]  # of input and output
    activation: str | None  # None: jumprelu if the file has thresholds, else relu
    k: Any  # of topk
    threshold: str  # the name of the tensor
    rows: bool  # the encoder is stored as Float[feature d_model]
    processed: dict[str, Any]  # how TransformerLens changed the model that the transcoder was trained on


def find_transcoders(name: str) -> Path:
    """The folder of the bundled transcoders of this name, or that a path names; raise ModelError if there is none."""
    bundled = sorted(path.parent.name for path in BUNDLED.glob("*/config.yaml"))
    path = BUNDLED / name if name in bundled else Path(os.path.expanduser(name))
    if not os.path.isdir(path):
        known = f"give one with {EXPECTED}, or the name of bundled ones: {', '.join(bundled)}"
        raise ModelError(f"--features {name}: is no folder of transcoders; {known}")
    return path


def read_transcoders(folder: Path, config: ModelConfig) -> dict[int, Transcoder]:
    """The transcoders in a folder by layer, for a model of these sizes, as they are stored: mapped from the files, in
    their dtypes. Not every layer needs one.

    Raises UserError if they can't be read, or read or write anything but the MLPs of such a model.
    """
    found: dict[int, Transcoder] = {}
    n_mlps = config.n_layers if config.d_mlp else 0
    for layer, stored in _stored(folder):
        if layer >= n_mlps:
            raise ModelError(f"{stored.file}: is for layer {layer}, but the model has MLPs in {n_mlps} layers (from 0)")
        if layer in found:
            raise ModelError(f"{stored.file}: is the second transcoder of layer {layer}; keep one of them in {folder}")
        found[layer] = _read(stored, config)
    if not found:
        unread = sorted(path.name for path in folder.glob("*") if path.suffix in UNREAD)
        why = f" ({unread[0]} is no safetensors file; save its tensors as one)" if unread else ""
        raise ModelError(f"{folder}: no transcoders that can be read{why}; expected {EXPECTED}, in it or its folders")
    return dict(sorted(found.items()))


def folded(transcoder: Transcoder, model: Transformer, layer: int) -> Transcoder:
    """A layer's transcoder on the model's device and in its dtype, whose encoder reads "stream" or "normalised"; raise
    ModelError if it reads "norm" and the model doesn't have that norm's scale and shift."""
    to = (model.device, model.dtype)
    encoder = transcoder.encoder.to(*to)
    bias = transcoder.bias.to(*to)
    threshold = transcoder.threshold if transcoder.threshold is None else transcoder.threshold.to(*to)
    there = replace(transcoder, encoder=encoder, bias=bias, decoder=transcoder.decoder.to(*to), threshold=threshold)
    if transcoder.reads != "norm":
        return there
    if layer not in model.mlp_norms:
        why = "it reads the MLP's norm with scale and shift, which a model in acdc's own format doesn't have"
        raise ModelError(f"the transcoder of layer {layer} doesn't fit the model: {why}")
    scale, shift = model.mlp_norms[layer]
    return replace(there, encoder=scale[:, None] * encoder, bias=bias + shift @ encoder, reads="normalised")


def _stored(folder: Path) -> Iterator[tuple[int, _Stored]]:
    """The transcoders of a folder, and their layers; those of SAELens may have a folder each."""
    where = folder / "config.yaml"
    if where.exists():
        of = _counting(_Set, read_yaml(where, _Set.model_fields), where)
        hooks = (of.feature_input_hook, of.feature_output_hook)
        for file in sorted(folder.glob("layer_*.safetensors")):
            if not re.fullmatch(r"layer_\d{1,6}", file.stem):
                raise ModelError(f"{file}: names no layer; expected a name such as layer_0.safetensors")
            name = "activation_function.threshold"
            yield int(file.stem[6:]), _Stored(where, file, hooks, of.activation, of.k, name, True, {})
        return
    for where in [folder / "cfg.json"] if (folder / "cfg.json").exists() else sorted(folder.glob("*/cfg.json")):
        raw = read_json(where)
        metadata = raw.get("metadata")  # before version 6 it stood beside the rest
        raw = {**(metadata if isinstance(metadata, dict) else {}), **raw}
        if "activation_fn_str" in raw:
            raw["activation_fn"] = raw["activation_fn_str"]
        one = _counting(_Single, raw, where)
        if not (at := re.match(r"blocks\.(\d{1,6})\.", one.hook_name)):
            raise ModelError(f"{where}: hook_name {one.hook_name!r} names no layer; expected blocks.0.…")
        hooks = (one.hook_name.removeprefix(at[0]), one.hook_name_out.removeprefix(at[0]))
        activation = "jumprelu" if one.architecture.startswith("jumprelu") else one.activation_fn
        k = (one.activation_fn_kwargs or {}).get("k", one.k)
        file = where.parent / "sae_weights.safetensors"
        processed = one.model_from_pretrained_kwargs or {}
        yield int(at[1]), _Stored(where, file, hooks, activation, k, "threshold", False, processed)


def _counting(schema: type[S], raw: dict[str, Any], where: Path) -> S:
    """The keys that count, without the others that such configs have."""
    return validated(schema, {key: raw[key] for key in schema.model_fields if key in raw}, str(where))


def _reads(stored: _Stored, config: ModelConfig) -> str:
    """What the encoder reads (`Transcoder.reads`); raise ModelError if that isn't what an MLP reads, or the decoder
    doesn't write what an MLP adds to the stream."""
    bare = not config.pre_norm or config.norm == "none"
    behind = "stream" if bare else "normalised" if stored.processed.get("fold_ln") else "norm"
    inputs = {"hook_resid_pre" if config.parallel else "hook_resid_mid": "stream", "hook_mlp_in": "stream"}
    inputs["mlp.hook_in"] = behind
    if not bare:
        inputs["ln2.hook_normalized"] = "normalised" if config.norm == "rms" else behind
    outputs = ("hook_mlp_out",) if config.post_norm else ("hook_mlp_out", "mlp.hook_out")
    for hook, known, what in zip(stored.hooks, (inputs, outputs), ("read", "written"), strict=True):
        if hook not in known:
            wanted = f"what is {what} by this model's MLPs is {' or '.join(known)}"
            raise ModelError(f"{stored.config}: {hook!r} is {what}, but {wanted}")
    return inputs[stored.hooks[0]]


def _read(stored: _Stored, config: ModelConfig) -> Transcoder:
    """Read a file, and check it against its config and the model."""
    from safetensors.torch import load_file

    reads = _reads(stored, config)
    file = stored.file
    if not file.is_file():
        raise ModelError(f"{file}: not found; it should hold the tensors of the transcoder in {stored.config}")
    with reading(file, "safetensors file"):
        tensors = load_file(file)
    activation = stored.activation or ("jumprelu" if stored.threshold in tensors else "relu")
    n = tensors["b_enc"].numel() if "b_enc" in tensors else 0
    d = config.d_model
    shapes = {"W_enc": (n, d) if stored.rows else (d, n), "b_enc": (n,), "W_dec": (n, d), "b_dec": (d,)}
    if activation.startswith("jump"):
        shapes[stored.threshold] = (n,)
    if "W_skip" in tensors:
        shapes["W_skip"] = (d, d)
    for name in sorted(shapes.keys() ^ tensors.keys()):
        wrong = "is missing" if name in shapes else "has no place"
        raise ModelError(f"{file}: tensor {name!r} {wrong} in a transcoder with the activation {activation}")
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != shape or not n:
            sizes = f"{n} features of a model of width {d}"
            raise ModelError(f"{file}: tensor {name!r} has shape {tuple(tensor.shape)}, not {shape}, for {sizes}")
        if tensor.dtype not in FLOATS.values() or not is_finite(tensor):
            raise ModelError(f"{file}: tensor {name!r} should hold finite floating-point numbers")
    if activation == "topk" and not (type(stored.k) is int and 0 < stored.k <= n):
        raise ModelError(f"{stored.config}: k is {stored.k!r}; of topk it should be a whole number from 1 to {n}")
    encoder = tensors["W_enc"].T if stored.rows else tensors["W_enc"]
    if reads == "stream" and config.norm == "layer" and stored.processed.get("center_writing_weights"):
        encoder = encoder - encoder.mean(0)  # the mean of the stream was 0
    threshold = tensors.get(stored.threshold)
    if threshold is not None and not stored.rows:
        threshold = threshold.clamp(min=0)  # SAELens has a relu, too
    top = stored.k if activation == "topk" else 0
    return Transcoder(encoder, tensors["b_enc"], tensors["W_dec"], threshold, top, reads)
