"""Broken models and files of runs by the thousand: a model that loads is finite, a run goes on or says why it can't."""

from __future__ import annotations

import itertools
import json
import random
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file

from acdc.errors import UserError
from acdc.graph.graph import Graph
from acdc.graph.scores import Scores, read_scores, write_scores
from acdc.io.progress import silent
from acdc.methods import masks
from acdc.methods.discover import find
from acdc.methods.log import read_log
from acdc.model.find import BUNDLED
from acdc.model.checkpoint import open_checkpoint
from acdc.model.load import load_model
from acdc.setup.config import resolve
from acdc.setup.inputs import load
from tests.support.gguf import TOKENS, library, write
from tests.support.hostile import (
    INPUTS,
    NASTY,
    judge,
    mutated,
    mutated_bytes,
    mutated_json,
    mutated_tensors,
    refusals,
    watched,
)

MOST = 1_000_000_000  # bytes of memory that a lie may cost


@pytest.fixture(autouse=True)
def in_memory() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST


def of_model(folder: Path) -> None:
    model = load_model(str(folder), "cpu").transformer
    assert all(torch.isfinite(x).all() for x in model.weights.values())
    assert torch.isfinite(model.unembed_mean).all()


def of_sizes(folder: Path) -> None:
    assert open_checkpoint(str(folder)).sizes.graph().n_edges > 0


def small(family: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """A random model of one layer as Hugging Face's checkpoints have it: config.json and tensors."""
    d, hidden, vocab = 32, 48, len(TOKENS)
    if family == "gpt2":
        config = {"n_layer": 1, "n_head": 4, "n_embd": d, "n_positions": 64, "n_inner": hidden, "vocab_size": vocab}
        config |= {"layer_norm_epsilon": 1e-4, "activation_function": "gelu_new"}
        shapes = {"wte.weight": (vocab, d), "wpe.weight": (64, d), "h.0.attn.c_attn.weight": (d, 3 * d)}
        shapes |= {"h.0.attn.c_attn.bias": (3 * d,), "h.0.attn.c_proj.weight": (d, d), "h.0.attn.c_proj.bias": (d,)}
        shapes |= {"h.0.mlp.c_fc.weight": (d, hidden), "h.0.mlp.c_fc.bias": (hidden,)}
        shapes |= {"h.0.mlp.c_proj.weight": (hidden, d), "h.0.mlp.c_proj.bias": (d,)}
        for norm in ("h.0.ln_1", "h.0.ln_2", "ln_f"):
            shapes |= {f"{norm}.weight": (d,), f"{norm}.bias": (d,)}
        shapes = {f"transformer.{name}": shape for name, shape in shapes.items()}
    elif family == "llama":
        config = {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": d}
        config |= {"intermediate_size": hidden, "max_position_embeddings": 64, "vocab_size": vocab, "head_dim": 8}
        config |= {"rms_norm_eps": 1e-4, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": True}
        shapes = {"embed_tokens.weight": (vocab, d), "norm.weight": (d,)}
        for name, shape in {
            "self_attn.q_proj": (d, d),
            "self_attn.k_proj": (d // 2, d),
            "self_attn.v_proj": (d // 2, d),
            "self_attn.o_proj": (d, d),
            "mlp.gate_proj": (hidden, d),
            "mlp.up_proj": (hidden, d),
            "mlp.down_proj": (d, hidden),
            "input_layernorm": (d,),
            "post_attention_layernorm": (d,),
        }.items():
            shapes[f"layers.0.{name}.weight"] = shape
        shapes = {f"model.{name}": shape for name, shape in shapes.items()}
    elif family == "gpt_neo":
        config = {"num_layers": 2, "num_heads": 4, "hidden_size": d, "max_position_embeddings": 64, "vocab_size": vocab}
        config |= {"attention_types": [[["global", "local"], 1]], "window_size": 4}
        shapes = {"transformer.wte.weight": (vocab, d), "transformer.wpe.weight": (64, d)}  # not whole
    else:
        config = {"num_hidden_layers": 1, "num_attention_heads": 4, "hidden_size": d, "intermediate_size": hidden}
        config |= {"max_position_embeddings": 64, "vocab_size": vocab, "rotary_pct": 0.25, "rope_theta": 10000}
        shapes = {"gpt_neox.embed_in.weight": (vocab, d)}  # not whole
    g = torch.Generator().manual_seed(0)
    return {"model_type": family, **config}, {k: torch.randn(shape, generator=g) * 0.3 for k, shape in shapes.items()}


def gguf_file(path: Path, family: str) -> Path:
    """The same model as a GGUF."""
    config, tensors = small(family)
    said = {"tie_word_embeddings": True, "rope_parameters": {"rope_theta": 10000.0}, **config}
    said |= {"num_hidden_layers": 1, "num_attention_heads": 4, "hidden_size": 32, "max_position_embeddings": 64}
    return write(path, family, SimpleNamespace(config=SimpleNamespace(**said), state_dict=lambda: tensors))


def directory(folder: Path, family: str) -> Path:
    """A directory of a model, with a byte-level tokenizer; the bundled ones are copied."""
    if (BUNDLED / family).is_dir():
        return Path(shutil.copytree(BUNDLED / family, folder))
    config, tensors = small(family)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    library()
    made = converted(gguf_file(folder.with_suffix(".gguf"), "llama"))
    shutil.copy(made / "tokenizer.json", folder / "tokenizer.json")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ACDC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


Change = Callable[[bytes, random.Random], bytes]


def text(change: Callable[[str, random.Random], str]) -> Change:
    return lambda raw, rng: change(raw.decode(), rng).encode("utf-8", "surrogatepass")


def mutated_sizes(raw: str, rng: random.Random) -> str:
    """Another value in config.json: a size that is too large, of another type, or anything."""
    if rng.random() < 0.3:
        return mutated_json(raw, rng)
    said = json.loads(raw)
    key = rng.choice(list(said))
    lies = (0, -1, 3, 10**6, 10**9, 2**31, 2**62, 10**30, 1.5, 1e308, float("nan"), float("inf"), True, None)
    said[key] = rng.choice((*lies, *NASTY, [], {}, [1], [[["local"], 10**12]], [[[], 10**12]], said[key], [10**12] * 3))
    if rng.random() < 0.2:
        more = ("rope_scaling", "rope_parameters", "sliding_window", "layer_types", "head_dim", "attention_layers")
        said[rng.choice(more)] = rng.choice((*lies, {"rope_type": "linear", "factor": rng.choice(lies)}, ["local"]))
    return json.dumps(said)


FAMILIES = ("or-gate", "tracr-reverse", "gpt2", "llama", "gpt_neo", "gpt_neox")
KINDS: dict[str, tuple[tuple[str, ...], str, Change, Callable[[Path], None], float]] = {
    "weights": (("or-gate", "tracr-xproportion", "gpt2", "llama"), "model.safetensors", mutated_tensors, of_model, 0.5),
    "weights of tiny": (("tiny",), "model.safetensors", mutated_tensors, of_model, 0.03),
    "config": (FAMILIES, "config.json", text(mutated_sizes), of_model, 0.5),
    "sizes": (FAMILIES, "config.json", text(mutated_sizes), of_sizes, 0.5),
    "tokenizer": (("or-gate", "llama"), "tokenizer.json", text(mutated_json), of_model, 0.3),
}


def several(folder: Path, good: Path, file: str, change: Change, read: Callable[[Path], None], count: int) -> int:
    """Change a file of a good folder again and again. Returns how often that was refused."""
    read(folder)
    raw = good.read_bytes()

    def breaks(rng: random.Random) -> Path:
        (folder / file).write_bytes(change(raw, rng))
        return folder

    refused = refusals(f"{folder.name} {file}", count, breaks, read, folder)
    (folder / file).write_bytes(raw)
    return refused


@pytest.mark.parametrize("kind", KINDS)
def test_broken_models_are_refused_or_finite(kind: str, tmp_path: Path) -> None:
    families, file, change, read, share = KINDS[kind]
    count, refused = max(2, int(INPUTS * share / len(families))), 0
    for family in families:
        folder = directory(tmp_path / family, family)
        reads = read if family not in ("gpt_neo", "gpt_neox") or read is of_sizes else refuses(read)
        shutil.copy(folder / file, tmp_path / "good")
        refused += several(folder, tmp_path / "good", file, change, reads, count)
    assert refused > count * len(families) / 10


def refuses(read: Callable[[Path], None]) -> Callable[[Path], None]:
    """For a model that isn't whole: that is what the message may be about."""

    def whole(folder: Path) -> None:
        try:
            read(folder)
        except UserError as error:
            if "is missing" not in str(error):
                raise
        else:
            raise AssertionError("a model that isn't whole was loaded")

    return whole


def test_broken_vocabularies_are_refused_with_one_message(tmp_path: Path) -> None:
    """GPT-2's older form of a tokenizer, in two files."""
    folder = directory(tmp_path / "gpt2", "gpt2")
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(TOKENS)}))
    (folder / "merges.txt").write_text("#version: 0.2\na b\nĠ ab\n1 7\n")
    for file, change in (("vocab.json", mutated_json), ("merges.txt", mutated)):
        shutil.copy(folder / file, tmp_path / "good")
        refused = several(folder, tmp_path / "good", file, text(change), of_sizes, INPUTS // 10)
        assert refused > 0, file


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_broken_ggufs_are_refused_with_one_message(tmp_path: Path, cache: Path, family: str) -> None:
    library()
    good = gguf_file(tmp_path / "good.gguf", family)
    load_model(str(good), "cpu")
    raw, path, count = good.read_bytes(), tmp_path / "m.gguf", INPUTS // 10
    header = raw.index(b"blk.0.ffn_up.weight") + 99

    def breaks(rng: random.Random) -> Path:
        shutil.rmtree(cache, ignore_errors=True)
        path.write_bytes(mutated_bytes(raw, rng, header))
        return path

    refused = refusals(family, count, breaks, of_model, tmp_path)
    assert refused > count / 4


# ---------------------------------------------------------------- one by one


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("or-gate", {"n_layers": 10**9}, "17,000 nodes"),
        ("llama", {"num_hidden_layers": 10**9}, "no model has so many"),
        ("llama", {"num_attention_heads": 10**6, "num_key_value_heads": 10**6}, "17,000 nodes"),
        ("llama", {"head_dim": 10**9}, "dimensions of a head"),
        ("gpt_neo", {"attention_types": [[["local"], 10**12]]}, "attention is described for 3 of 2 layers"),
        ("gpt_neo", {"attention_types": [[[], 10**12]]}, "is missing"),
        ("gpt_neox", {"use_parallel_residual": "no"}, "parallel is 'no'; it must be true or false"),
        ("gpt2", {"n_layer": True}, "n_layer is True; it must be a whole number"),
        ("gpt2", {"n_inner": 48.0}, "d_mlp is 48.0; it must be a whole number"),
        ("gpt2", {"layer_norm_epsilon": float("inf")}, "norm_eps is inf"),
    ],
)
def test_sizes_that_lie(tmp_path: Path, family: str, change: dict[str, Any], message: str) -> None:
    folder = directory(tmp_path / family, family)
    said = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match=message), watched(tmp_path):
        load_model(str(folder), "cpu")


def test_a_tokenizer_that_the_library_panics_at_is_refused(tmp_path: Path) -> None:
    folder = directory(tmp_path / "llama", "llama")
    said = json.loads((folder / "tokenizer.json").read_text())
    said["model"]["continuing_subword_prefix"] = "longer than any token"
    (folder / "tokenizer.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match="not a readable tokenizer"):
        load_model(str(folder))


def test_config_that_is_nested_without_end(tmp_path: Path) -> None:
    folder = directory(tmp_path / "or-gate", "or-gate")
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="is not JSON that acdc can read"):
        load_model(str(folder))


def test_weights_that_are_no_floats_are_refused(tmp_path: Path) -> None:
    folder = directory(tmp_path / "gpt2", "gpt2")
    _, tensors = small("gpt2")
    save_file(tensors | {"transformer.ln_f.bias": torch.ones(32, dtype=torch.int32)}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"'transformer\.ln_f\.bias' holds int32; weights should be"):
        load_model(str(folder))


def test_a_tensor_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    folder = directory(tmp_path / "gpt2", "gpt2")
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    save_file({"transformer.ln_f.bias": torch.ones(32)}, folder / "b.safetensors")
    with pytest.raises(UserError, match=r"b\.safetensors: tensor 'transformer\.ln_f\.bias' is also in another file"):
        load_model(str(folder))


def test_an_unembedding_that_is_infinite_once_it_is_centred_is_refused(tmp_path: Path) -> None:
    folder = directory(tmp_path / "gpt2", "gpt2")
    _, tensors = small("gpt2")
    tensors["transformer.wte.weight"][:-1], tensors["transformer.wte.weight"][-1] = 3e38, -3e38
    tensors["transformer.ln_f.weight"].fill_(1)
    tensors["transformer.ln_f.bias"].fill_(0)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"'unembed\.weight' is too large to be centred in torch\.float32"):
        load_model(str(folder))
    assert load_model(str(folder), dtype="float64").transformer.unembed_mean.isfinite().all()


def test_a_gguf_whose_counts_lie_ends_at_once(tmp_path: Path) -> None:
    library()
    raw = gguf_file(tmp_path / "good.gguf", "llama").read_bytes()
    array = raw.index(b"tokenizer.ggml.token_type") + len("tokenizer.ggml.token_type") + 8  # behind two types
    layers = raw.index(b"llama.block_count") + len("llama.block_count") + 4
    for at, lies in (
        (8, (2**31).to_bytes(8, "little")),
        (16, (2**31).to_bytes(8, "little")),
        (array - 4, (0).to_bytes(4, "little") + (2**40).to_bytes(8, "little")),  # single bytes, of which none is torn
        (layers, (2**31).to_bytes(4, "little")),
    ):
        lie = bytearray(raw)
        lie[at : at + len(lies)] = lies
        (tmp_path / "m.gguf").write_bytes(lie)
        no, mistake = judge(of_model, tmp_path / "m.gguf", tmp_path)
        assert no and not mistake, (at, mistake)


def test_a_user_that_is_not_there() -> None:
    for name in ("~nobody-of-this-name/model", "~nobody-of-this-name/m.gguf"):
        with pytest.raises(UserError, match="no such"):
            load_model(name)


# ---------------------------------------------------------------- runs that are to go on


def test_broken_logs_are_refused_or_gone_on_with(tmp_path: Path) -> None:
    """The log of a real run, read as a run that goes on reads it, and now and then gone on with."""
    given = {
        "task": "or-gate",
        "model": "or-gate",
        "examples": 1,
        "threshold": 0.1,
        "device": "cpu",
        "dtype": "float64",
    }
    inputs = load(*resolve(given, None, None)[:2])
    path = tmp_path / "log.jsonl"
    kept = find(inputs, tmp_path, silent).circuit.kept
    lines, reads, count = path.read_text(), itertools.count(), INPUTS // 3

    def go_on(path: Path) -> None:
        now_and_then = next(reads) % 5 == 0
        assert all(np.isfinite([d.change, d.margin, d.metric]).all() for d in read_log(path))
        if now_and_then:
            assert find(inputs, path.parent, silent).circuit.kept.shape == kept.shape

    def breaks(rng: random.Random) -> Path:
        rows = lines.splitlines()
        i = rng.randrange(len(rows))
        rows[i] = mutated_json(rows[i], rng)
        path.write_bytes("\n".join(rows[: rng.randrange(i, len(rows)) + 1]).encode("utf-8", "surrogatepass"))
        return path

    refused = refusals("log", count, breaks, go_on, tmp_path)
    assert refused > count / 4


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_a_log_with_numbers_that_are_none_is_refused(tmp_path: Path, number: str) -> None:
    good = '{"batch": 1, "edge": "input->logits", "change": 0.5, "margin": 0.1, "metric": 0.2, "kept": true}\n'
    (tmp_path / "log.jsonl").write_text(good)
    assert len(read_log(tmp_path / "log.jsonl")) == 1
    for known in ("0.5", "0.1", "0.2"):
        (tmp_path / "log.jsonl").write_text(good.replace(known, number) + good)
        with pytest.raises(UserError, match="line 1: not a decision of this log"):
            read_log(tmp_path / "log.jsonl")
    (tmp_path / "log.jsonl").write_text("[" * 100_000 + "\n" + good)
    with pytest.raises(UserError, match="line 1: not a decision of this log"):
        read_log(tmp_path / "log.jsonl")


def broken(raw: bytes, path: Path) -> Callable[[random.Random], Path]:
    """Writes tensors, broken, to a file."""

    def breaks(rng: random.Random) -> Path:
        path.write_bytes(mutated_tensors(raw, rng))
        return path

    return breaks


def test_broken_scores_are_refused_or_finite(tmp_path: Path) -> None:
    graph, path = Graph(2, 2), tmp_path / "scores.safetensors"
    write_scores(path, Scores.random(graph, 0))
    raw = path.read_bytes()

    def read(path: Path) -> None:
        assert np.isfinite(read_scores(path, graph).edges[graph.edges]).all()

    read(path)
    assert refusals("scores", INPUTS, broken(raw, path), read, tmp_path) > INPUTS / 4


def test_broken_checkpoints_are_refused_or_finite(tmp_path: Path) -> None:
    state = {"alpha": torch.zeros(9), "mean": torch.zeros(9), "square": torch.ones(9), "multipliers": torch.zeros(2)}
    raw, path = save(state, {"training": "mark", "updates": "25"}), tmp_path / "masks.safetensors"

    def read(path: Path) -> None:
        done, found = masks._read(path, "mark", state)
        assert done > 0 and all(torch.isfinite(x).all() for x in found.values())

    path.write_bytes(raw)
    read(path)
    assert refusals("masks", INPUTS, broken(raw, path), read, tmp_path) > INPUTS / 4


@pytest.mark.parametrize("updates", ["", "-1", "0", "many", "9" * 30, "1e3"])
def test_a_checkpoint_whose_count_is_none_is_refused(tmp_path: Path, updates: str) -> None:
    state = {"alpha": torch.zeros(9)}
    (tmp_path / "m.safetensors").write_bytes(save(state, {"training": "mark", "updates": updates}))
    with pytest.raises(UserError, match="is damaged; remove it or use --force"):
        masks._read(tmp_path / "m.safetensors", "mark", state)
