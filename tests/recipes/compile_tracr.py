"""Recipe of the bundled models `tracr-reverse` and `tracr-xproportion`; the true edges of any such model.

    pip install 'acdc-circuits[recipes]'
    python -m tests.recipes.compile_tracr --out acdc/bundled

compiles two RASP programs with Tracr (Lindner et al. 2023), writes them in our own weight format, and checks
that what was written computes what Tracr's model and the RASP interpreter compute. Only `compile_program`
needs `tracr-pypi`. The rest works from the written weights alone: `forward`, a plain numpy run of the model
with any edges removed, and `structure`, the edges that can carry anything at all.

Shapes: B batch, T positions, D width, O outputs. Vectors are rows: x @ W.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save

from acdc.graph.circuit import Circuit
from acdc.graph.graph import QKV, Graph, Receiver, Sender

Array = np.ndarray
BOS = "BOS"


@dataclass(frozen=True)
class Model:
    """What `config.json` and `model.safetensors` hold; the weights in float64 (in the file, float32)."""

    config: dict[str, Any]
    weights: dict[str, Array]

    @property
    def graph(self) -> Graph:
        """Its edges, as acdc counts them."""
        inputs = ("tok", "pos") if self.config["split_position"] else ("input",)
        return Graph(self.config["n_layers"], self.config["n_heads"], self.config["d_mlp"] > 0, inputs)

    def layer(self, layer: int, name: str) -> Array:
        """A weight of one layer."""
        return self.weights[f"layers.{layer}.{name}"]


def make_model(weights: dict[str, Array], n_layers: int, causal: bool, split_position: bool) -> Model:
    """A model without layer norm and with ReLU; its sizes are those of the weights."""
    n_heads, d_model, d_head = weights["layers.0.q.weight"].shape
    vocab_size, vocab_out = len(weights["token.weight"]), weights["unembed.weight"].shape[1]
    config = {
        "model_type": "acdc", "n_layers": n_layers, "n_heads": n_heads, "d_model": d_model, "d_head": d_head,
        "d_mlp": weights["layers.0.mlp_in.weight"].shape[1], "n_positions": len(weights["position.weight"]),
        "vocab_size": vocab_size, "norm": "none", "norm_eps": 0.0, "activation": "relu", "causal": causal,
        "split_position": split_position,
    }  # fmt: skip
    return Model(config if vocab_out == vocab_size else config | {"vocab_out": vocab_out}, weights)


def save_model(folder: Path, model: Model, words: Collection[str], basis: Collection[str]) -> None:
    """Write config.json, model.safetensors, tokenizer.json and structure.json; the same bytes every time.

    Args:
        words: the input tokens; a word's id is its place.
        basis: names of the D directions of the residual stream.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: np.ascontiguousarray(v, dtype=np.float32) for k, v in sorted(model.weights.items())}
    (folder / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
    _write_json(folder / "config.json", model.config)
    _write_json(folder / "structure.json", {"edges": structure(model), "basis": list(basis)})
    _save_tokenizer(folder / "tokenizer.json", words)


def load_model(folder: Path) -> Model:
    """The model in a folder that `save_model` wrote."""
    weights = {k: v.astype(np.float64) for k, v in load_file(folder / "model.safetensors").items()}
    return Model(json.loads((folder / "config.json").read_text(encoding="utf-8")), weights)


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _save_tokenizer(path: Path, words: Collection[str]) -> None:
    """A word-level tokenizer that splits at blanks. It has no unknown token: another word is an error."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    path.write_text(tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")


# Running a model


def forward(model: Model, ids: Array, removed: Collection[str] = ()) -> Array:
    """Logits of a plain forward pass in which the removed edges carry zero.

    Args:
        ids: Int[B T].
        removed: names of residual edges, such as `tok->a0.h0<v>`.

    Returns:
        Float[B T O].
    """
    sent = _embed(model, ids)
    bias = np.zeros_like(next(iter(sent.values())))

    def read(receiver: str) -> Array:
        """Float[B T D]: the sum of what reaches a receiver."""
        return bias + sum(x for sender, x in sent.items() if f"{sender}->{receiver}" not in removed)

    for layer in range(model.config["n_layers"]):
        heads = {}
        for h in range(model.config["n_heads"]):
            name = f"a{layer}.h{h}"
            heads[name] = _head(model, layer, h, [read(f"{name}<{c}>") for c in QKV])
        sent |= heads
        bias = bias + model.layer(layer, "o.bias")
        if model.config["d_mlp"]:
            sent[f"m{layer}"] = _mlp(model, layer, read(f"m{layer}"))
    return np.asarray(read("logits") @ model.weights["unembed.weight"] + model.weights["unembed.bias"])


def _embed(model: Model, ids: Array) -> dict[str, Array]:
    """What the input senders write, each Float[B T D]."""
    token = model.weights["token.weight"][ids]
    position = np.broadcast_to(model.weights["position.weight"][: ids.shape[1]], token.shape)
    return {"tok": token, "pos": position} if model.config["split_position"] else {"input": token + position}


def _head(model: Model, layer: int, head: int, inputs: list[Array]) -> Array:
    """What one head writes, Float[B T D], from what its query, key and value read, each Float[B T D]."""
    q, k, v = (
        x @ model.layer(layer, f"{c}.weight")[head] + model.layer(layer, f"{c}.bias")[head]
        for c, x in zip(QKV, inputs, strict=True)
    )
    scores = q @ k.transpose(0, 2, 1)
    if model.config["causal"]:
        scores = np.where(np.tri(scores.shape[1], dtype=bool), scores, -np.inf)
    pattern = np.exp(scores - scores.max(axis=-1, keepdims=True))
    pattern /= pattern.sum(axis=-1, keepdims=True)
    return np.asarray(pattern @ v @ model.layer(layer, "o.weight")[head])


def _mlp(model: Model, layer: int, x: Array) -> Array:
    """What one MLP writes, Float[B T D]."""
    hidden = np.maximum(x @ model.layer(layer, "mlp_in.weight") + model.layer(layer, "mlp_in.bias"), 0)
    return np.asarray(hidden @ model.layer(layer, "mlp_out.weight") + model.layer(layer, "mlp_out.bias"))


# Ground truth


def structure(model: Model) -> list[str]:
    """Names of the edges that are real by the weights, in (sender, receiver) order.

    An edge is real iff some direction of the residual basis is both written by the sender and read by the
    receiver. Every other edge carries nothing on any input.
    """
    graph = model.graph
    writes = np.stack([_writes(model, sender) for sender in graph.senders])
    reads = np.stack([_reads(model, receiver) for receiver in graph.receivers])
    return Circuit(graph, (writes.astype(int) @ reads.T.astype(int) > 0) & graph.edges).edge_names()


def _writes(model: Model, sender: Sender) -> Array:
    """Bool[D]: the directions a sender can write."""
    layer, head = sender.layer, sender.head
    if sender.kind == "input":
        used = {"tok": ["token"], "pos": ["position"], "input": ["token", "position"]}[sender.name]
        return np.any([_nonzero(model.weights[f"{part}.weight"].T) for part in used], axis=0)
    if sender.kind == "head":
        value = np.vstack([model.layer(layer, "v.weight")[head], model.layer(layer, "v.bias")[head]])
        return _nonzero((value @ model.layer(layer, "o.weight")[head]).T)
    w_in, b_in = model.layer(layer, "mlp_in.weight"), model.layer(layer, "mlp_in.bias")
    fires = _nonzero(w_in.T) | (b_in > 0)
    return _nonzero(model.layer(layer, "mlp_out.weight")[fires].T) | (model.layer(layer, "mlp_out.bias") != 0)


def _reads(model: Model, receiver: Receiver) -> Array:
    """Bool[D]: the directions a receiver reads to any effect.

    A query counts only against keys that differ (what it adds to every key alike cancels in the softmax), a
    key only against queries that are not zero, a value or an MLP unit only where it is written out.
    """
    kind, layer, head = receiver.kind, receiver.layer, receiver.head
    if kind == "logits":
        return _nonzero(model.weights["unembed.weight"])
    if kind == "mlp":
        written = _nonzero(model.layer(layer, "mlp_out.weight"))
        return _nonzero(model.layer(layer, "mlp_in.weight")[:, written])
    w_q, w_k, w_v, w_o = (model.layer(layer, f"{c}.weight")[head] for c in "qkvo")
    query = np.vstack([w_q, model.layer(layer, "q.bias")[head]])
    return _nonzero({"q": w_q @ w_k.T, "k": w_k @ query.T, "v": w_v @ w_o}[kind])


def _nonzero(matrix: Array) -> Array:
    """Bool[rows]: which rows of a matrix are not zero (float32 rounding apart)."""
    return np.asarray((np.abs(matrix) > 1e-6).any(axis=-1))


# Compiling


@dataclass(frozen=True)
class Program:
    """A RASP program to compile, and what is known of it.

    Args:
        name: name of the bundled model.
        build: makes the program from the modules `rasp` and `lib` of Tracr.
        values: the vocabulary, in the order of the token ids that follow BOS.
        sequences: every input of the task, without BOS.
        output: name of the output variable in the residual basis.
        numerical: the output is one number per position, not one of the tokens.
        published: the residual edges of the circuit in the ACDC code, in our names.
        inert: real edges without which, under zero ablation, every output after BOS stays the same.
    """

    name: str
    build: Callable[[Any, Any], Any]
    values: tuple[Any, ...]
    sequences: list[tuple[Any, ...]]
    output: str
    numerical: bool
    published: frozenset[str]
    inert: frozenset[str]

    @property
    def words(self) -> list[str]:
        """The vocabulary, by token id."""
        return [BOS, *map(str, self.values)]

    @property
    def ids(self) -> Array:
        """Int[B T]: the token ids of all sequences, BOS first."""
        place = {value: i + 1 for i, value in enumerate(self.values)}
        return np.array([[0, *(place[value] for value in sequence)] for sequence in self.sequences])


REVERSE = Program(
    name="tracr-reverse",
    build=lambda rasp, lib: lib.make_reverse(rasp.tokens),
    values=(1, 2, 3),
    sequences=list(itertools.permutations((1, 2, 3))),
    output="reverse",
    numerical=False,
    published=frozenset({
        "tok->a0.h0<v>", "tok->m0", "a0.h0->m0", "tok->m1", "pos->m1", "m0->m1", "m1->m2", "m2->a3.h0<q>",
        "pos->a3.h0<k>", "tok->a3.h0<v>", "a3.h0->logits",
    }),
    inert=frozenset({"tok->a0.h0<q>", "tok->a0.h0<k>", "tok->a3.h0<q>", "tok->a3.h0<k>"}),
)  # fmt: skip

XPROPORTION = Program(
    name="tracr-xproportion",
    build=lambda rasp, lib: lib.make_frac_prevs(rasp.tokens == "x"),
    values=("w", "x", "y", "z"),
    sequences=list(itertools.product("wxyz", repeat=4)),
    output="frac_prevs",
    numerical=True,
    published=frozenset({
        "tok->m0", "tok->a1.h0<q>", "pos->a1.h0<q>", "tok->a1.h0<k>", "pos->a1.h0<k>", "m0->a1.h0<v>",
        "a1.h0->logits",
    }),
    inert=frozenset({"tok->a1.h0<q>", "tok->a1.h0<k>"}),
)  # fmt: skip

PROGRAMS = (REVERSE, XPROPORTION)
_PARTS = ("attn/query", "attn/key", "attn/value", "attn/linear", "mlp/linear_1", "mlp/linear_2")
MAX_SEQ_LEN = 5  # as in the ACDC code: BOS and up to five tokens


def compile_program(program: Program) -> tuple[Model, list[str], Array, list[list[Any]]]:
    """Compile with Tracr (needs `tracr-pypi`).

    Returns:
        The model, the names of its D residual directions, and for every sequence of the program what Tracr's
        own model has in the output directions, Float[B T O], and what the RASP interpreter says, B lists
        without BOS.
    """
    importlib.import_module("jax").config.update("jax_enable_x64", True)
    rasp, lib = importlib.import_module("tracr.rasp.rasp"), importlib.import_module("tracr.compiler.lib")
    compiling = importlib.import_module("tracr.compiler.compiling")
    source = program.build(rasp, lib)
    compiled = compiling.compile_rasp_to_model(
        source, vocab=set(program.values), max_seq_len=MAX_SEQ_LEN, compiler_bos=BOS
    )
    weights = _convert(compiled, program)
    model = make_model(weights, compiled.model_config.num_layers, causal=False, split_position=True)
    tracr_ids = np.array([compiled.input_encoder.encode([BOS, *sequence]) for sequence in program.sequences])
    residual = np.asarray(compiled.forward(compiled.params, tracr_ids).transformer_output.output)
    outputs = residual @ weights["unembed.weight"]
    return model, _basis(compiled), outputs, [source(list(s)) for s in program.sequences]


def _convert(compiled: Any, program: Program) -> dict[str, Array]:
    """Weights in our format, without Tracr's padding token."""
    params = {k: {n: np.asarray(w, np.float64) for n, w in p.items()} for k, p in compiled.params.items()}
    rows = [compiled.input_encoder.encoding_map[value] for value in (BOS, *program.values)]
    weights = {
        "token.weight": params["token_embed"]["embeddings"][rows],
        "position.weight": params["pos_embed"]["embeddings"],
        "unembed.weight": _unembed(_basis(compiled), program),
    }
    weights["unembed.bias"] = np.zeros(weights["unembed.weight"].shape[1])
    for layer in range(compiled.model_config.num_layers):
        heads, size = compiled.model_config.num_heads, compiled.model_config.key_size
        part = {name: params[f"transformer/layer_{layer}/{name}"] for name in _PARTS}
        for name, value in _convert_layer(part, heads, size).items():
            weights[f"layers.{layer}.{name}"] = value
    return weights


def _convert_layer(part: dict[str, dict[str, Array]], heads: int, size: int) -> dict[str, Array]:
    """One layer: heads split, and the attention scale 1/sqrt(key size) in the query."""
    out = {}
    for c, name in zip(QKV, _PARTS[:3], strict=True):
        scale = size**-0.5 if c == "q" else 1.0
        w, b = part[name]["w"] * scale, part[name]["b"] * scale
        out[f"{c}.weight"] = w.reshape(len(w), heads, size).swapaxes(0, 1)
        out[f"{c}.bias"] = b.reshape(heads, size)
    linear = part["attn/linear"]
    out |= {"o.weight": linear["w"].reshape(heads, size, -1), "o.bias": linear["b"]}
    for ours, name in (("mlp_in", "mlp/linear_1"), ("mlp_out", "mlp/linear_2")):
        out |= {f"{ours}.weight": part[name]["w"], f"{ours}.bias": part[name]["b"]}
    return out


def _basis(compiled: Any) -> list[str]:
    """Names of the D residual directions: `variable:value`, or `variable` if it is a number.

    Tracr adds a running number to a variable's name, `length_8:0`; we drop it.
    """
    return [re.sub(r"_\d+(?=[_:]|$)", "", label) for label in compiled.residual_labels]


def _unembed(basis: list[str], program: Program) -> Array:
    """Float[D O], zeros and ones: reads the directions of the program's output.

    A categorical output has a column per input token, zero for BOS, so that argmax is a token id; a numerical
    one has a single column.
    """
    name = program.output
    columns = [name] if program.numerical else [f"{name}:{word}" for word in program.words]
    weight = (np.array(basis)[:, None] == np.array(columns)).astype(np.float64)
    assert weight.sum() == (1 if program.numerical else len(program.values)), basis
    return weight


def check(program: Program, folder: Path, tracr_outputs: Array, rasp_outputs: list[list[Any]]) -> float:
    """Assert that the written model is right; returns its largest deviation from Tracr's model."""
    model = load_model(folder)
    outputs = forward(model, program.ids)
    deviation = float(np.abs(outputs - tracr_outputs).max())
    assert deviation < 1e-5, deviation
    if program.numerical:
        assert np.abs(outputs[:, 1:, 0] - np.array(rasp_outputs)).max() < 1e-5
    else:
        decoded = [[program.words[i] for i in row] for row in outputs[:, 1:].argmax(axis=-1)]
        assert decoded == [[str(value) for value in row] for row in rasp_outputs]
    check_edges(program, model)
    return deviation


def check_edges(program: Program, model: Model) -> None:
    """Assert what is known of the edges.

    The real ones are those listed. Under zero ablation, at the positions after BOS, the published ones that
    are not inert suffice, and each of them is needed.
    """
    assert set(structure(model)) == program.published | program.inert, structure(model)
    needed = program.published - program.inert
    others = set(Circuit.full(model.graph).edge_names()) - needed
    outputs = forward(model, program.ids)[:, 1:]
    assert np.abs(forward(model, program.ids, others)[:, 1:] - outputs).max() < 1e-5
    for edge in sorted(needed):
        change = np.abs(forward(model, program.ids, others | {edge})[:, 1:] - outputs).max()
        assert change > 0.1, (edge, change)


def main() -> None:
    """Write both models."""
    parser = argparse.ArgumentParser(description="Compile the bundled Tracr models (needs tracr-pypi).")
    parser.add_argument("--out", type=Path, required=True, help="folder that gets one folder per model")
    out = parser.parse_args().out
    for program in PROGRAMS:
        model, basis, tracr_outputs, rasp_outputs = compile_program(program)
        save_model(out / program.name, model, program.words, basis)
        deviation = check(program, out / program.name, tracr_outputs, rasp_outputs)
        print(f"{program.name}: {len(program.sequences)} inputs right, deviation from Tracr {deviation:.1e}")


if __name__ == "__main__":
    main()
