"""Broken models and files of runs by the thousand: a model that loads is finite, a run goes on or says why it can't."""

from __future__ import annotations

import itertools
import json
import random
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save, save_file

from acdc.errors import UserError
from acdc.graph.graph import Graph
from acdc.graph.scores import Scores, read_scores, write_scores
from acdc.io.progress import silent
from acdc.methods import masks
from acdc.methods.discover import find
from acdc.methods.log import read_log
from acdc.model.checkpoint import open_checkpoint
from acdc.model.find import BUNDLED
from acdc.model.hub import INDEX, WEIGHTS
from acdc.model.huggingface import transformers
from acdc.model.load import load_model
from acdc.setup.config import resolve
from acdc.setup.inputs import load
from acdc.task.load import load_task
from acdc.task.tokenize import make_data
from tests.support.gguf import TOKENS, library, small, tokenizer, write
from tests.support.hostile import (
    INPUTS,
    NASTY,
    in_time,
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


@pytest.fixture(autouse=True)
def nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    out, err = capfd.readouterr()
    by_rust = "Ignored unknown kwarg option "  # of the library tokenizers, as are its panics
    assert not [line for line in out.split("\n") if line and not line.startswith(by_rust)]
    assert "panicked at" in err or not err


def of_model(folder: Path) -> None:
    model = load_model(str(folder), "cpu").transformer
    assert all(torch.isfinite(x).all() for x in model.weights.values())
    assert torch.isfinite(model.unembed_mean).all()


def of_sizes(folder: Path) -> None:
    assert open_checkpoint(str(folder)).sizes.graph().n_edges > 0


def directory(folder: Path, family: str) -> Path:
    """A directory of a small model, with a byte-level tokenizer; the bundled ones are copied."""
    if (BUNDLED / family).is_dir():
        return Path(shutil.copytree(BUNDLED / family, folder))
    with transformers(folder, "model"):  # it prints nothing
        small(family).save_pretrained(folder)
        tokenizer().save_pretrained(folder)
    (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": {"content": TOKENS[0], "special": True}}))
    (folder / "generation_config.json").write_text(json.dumps({"cache_implementation": "static", "num_beams": 1}))
    (folder / "added_tokens.json").write_text(json.dumps({"<tool>": len(TOKENS) - 1}))
    return folder


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


FAMILIES = ("or-gate", "tracr-reverse", "gpt2", "llama", "qwen2", "gpt_neo", "gpt_neox")
KINDS: dict[str, tuple[tuple[str, ...], str, Change, Callable[[Path], None], float]] = {
    "weights": (
        ("or-gate", "tracr-xproportion", "gpt2", "llama"),
        "model.safetensors",
        mutated_tensors,
        of_model,
        0.25,
    ),
    "weights of tiny": (("tiny",), "model.safetensors", mutated_tensors, of_model, 0.03),
    "config": (FAMILIES, "config.json", text(mutated_sizes), of_model, 0.25),
    "sizes": (FAMILIES, "config.json", text(mutated_sizes), of_sizes, 0.5),
    "tokenizer": (("or-gate", "llama"), "tokenizer.json", text(mutated_json), of_sizes, 0.3),
    "tokenizer's config": (("llama",), "tokenizer_config.json", text(mutated_json), of_sizes, 0.3),
    "special tokens": (("llama",), "special_tokens_map.json", text(mutated_json), of_sizes, 0.1),
    "added tokens": (("llama",), "added_tokens.json", text(mutated_json), of_sizes, 0.1),
    "generation": (("llama",), "generation_config.json", text(mutated_json), of_model, 0.1),
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
        shutil.copy(folder / file, tmp_path / "good")
        refused += several(folder, tmp_path / "good", file, change, read, count)
    assert refused > count * len(families) / 20


def test_broken_indices_are_refused_or_finite(tmp_path: Path) -> None:
    folder = directory(tmp_path / "llama", "llama")
    (folder / WEIGHTS).unlink()
    with transformers(folder, "model"):
        small("llama").save_pretrained(folder, max_shard_size="50KB")
    shutil.copy(folder / INDEX, tmp_path / "good")
    refused = several(folder, tmp_path / "good", INDEX, text(mutated_json), of_model, INPUTS // 10)
    assert refused > 0


def test_broken_vocabularies_are_refused_with_one_message(tmp_path: Path) -> None:
    """GPT-2's older form of a tokenizer, in two files."""
    folder = directory(tmp_path / "gpt2", "gpt2")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        (folder / name).unlink()
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(TOKENS)}))
    (folder / "merges.txt").write_text("#version: 0.2\na b\nĠ ab\n1 7\n")
    for file, change in (("vocab.json", mutated_json), ("merges.txt", mutated)):
        shutil.copy(folder / file, tmp_path / "good")
        refused = several(folder, tmp_path / "good", file, text(change), of_sizes, INPUTS // 10)
        assert refused > 0, file


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_broken_ggufs_are_refused_with_one_message(tmp_path: Path, family: str) -> None:
    library()
    good = write(tmp_path / "good.gguf", family, small(family))
    load_model(str(good), "cpu")
    raw, path, count = good.read_bytes(), tmp_path / "m.gguf", INPUTS // 10
    header = raw.index(b"blk.0.ffn_up.weight") + 99

    def breaks(rng: random.Random) -> Path:
        path.write_bytes(mutated_bytes(raw, rng, header))
        return path

    refused = refusals(family, count, breaks, of_model, tmp_path)
    assert refused > count / 4


# ---------------------------------------------------------------- one by one


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("or-gate", {"n_layers": 10**9}, "17,000 nodes"),
        ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers describes 1,000,000,000; no model has so many"),
        ("llama", {"num_hidden_layers": 3000}, "describes 3,000 layers; the files hold 21 tensors"),
        ("llama", {"num_hidden_layers": "2"}, "not a readable config"),
        ("llama", {"num_labels": 10**9}, "num_labels describes 1,000,000,000; no model has so many"),
        ("llama", {"vocab_size": 10**12}, "weights; the files hold 32,224"),
        ("llama", {"intermediate_size": 10**12}, "weights; the files hold 32,224"),
        ("llama", {"num_attention_heads": 10**6, "hidden_size": 10**6}, "17,000 nodes"),
        ("llama", {"head_dim": 10**9}, "head_dim describes 1,000,000,000; no model has so many"),
        ("llama", {"dtype": "garbage"}, "not a readable config"),
        ("llama", {"model_type": ["llama"]}, r"model_type \['llama'\] is not supported"),
        ("llama", {"rope_parameters": [10000.0]}, "not a readable config"),
        ("llama", {"rope_parameters": {"rope_theta": "x"}}, "not a readable config"),
        ("llama", {"rope_parameters": {"rope_theta": 0.0}}, "'rotary.frequencies' contains NaN or infinity"),
        ("llama", {"transformers_weights": "../x.safetensors"}, "transformers_weights is set"),
        ("qwen2", {"num_hidden_layers": 10**9}, "no model has so many"),
        ("qwen2", {"layer_types": ["sliding", "wide"]}, "not a readable config"),
        (
            "gpt_neo",
            {"attention_types": [[["local"], 10**12]]},
            "attention_types describes 1,000,000,000,000; no model",
        ),
        ("gpt_neo", {"attention_types": [[[], 10**12]]}, "attention_types describes 1,000,000,000,000; no model"),
        ("gpt_neo", {"max_position_embeddings": 10**9}, "weights; the files hold"),
        ("gpt_neox", {"use_parallel_residual": "no"}, "not a readable config"),
        ("gpt_neox", {"head_dim": 10**9}, "head_dim describes 1,000,000,000; no model has so many"),
        ("gpt2", {"n_layer": True}, "n_layer"),
        ("gpt2", {"n_inner": 48.0}, "n_inner"),
        ("gpt2", {"n_positions": 10**9}, "weights; the files hold"),
        ("gpt2", {"attribute_map": {"a": "b"}}, "not a readable config"),
        ("gpt2", {"layer_norm_epsilon": float("inf")}, "norm_eps is inf"),
    ],
)
def test_sizes_that_lie(tmp_path: Path, family: str, change: dict[str, Any], message: str) -> None:
    folder = directory(tmp_path / family, family)
    said = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match=message), watched(tmp_path), in_time():
        load_model(str(folder), "cpu")


def test_masks_that_a_small_file_can_describe_are_not_made(tmp_path: Path) -> None:
    """GPT-Neo's have an entry for each pair of positions, and a position needs only a few bytes of a file."""
    folder = directory(tmp_path / "gpt_neo", "gpt_neo")
    said = json.loads((folder / "config.json").read_text())
    said |= {"hidden_size": 4, "max_position_embeddings": 100_000}
    (folder / "config.json").write_text(json.dumps(said))
    save_file(load_file(folder / WEIGHTS) | {"transformer.wpe.weight": torch.zeros(100_000, 4)}, folder / WEIGHTS)
    with pytest.raises(UserError, match="20,000,000,000 bytes of masks"), in_time():
        load_model(str(folder), "cpu")


EVIL = """
from pathlib import Path
Path(__file__).with_name("ran").write_text("")
from transformers import LlamaConfig as Config, LlamaForCausalLM as Model, PreTrainedTokenizerFast as Tokens
"""


@pytest.mark.parametrize("of", ["PreTrainedTokenizerFast", "Tokens"])
def test_no_code_of_a_checkpoint_is_run(tmp_path: Path, of: str) -> None:
    folder = directory(tmp_path / "llama", "llama")
    (folder / "evil.py").write_text(EVIL)
    maps = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": [None, "evil.Tokens"]}
    for file in ("config.json", "tokenizer_config.json"):
        said = json.loads((folder / file).read_text())
        said |= {"auto_map": maps, "trust_remote_code": True, "tokenizer_class": of}
        (folder / file).write_text(json.dumps(said))
    no, mistake = judge(of_model, folder, tmp_path)
    assert no == (of == "Tokens") and not mistake, mistake
    assert not list(tmp_path.rglob("ran"))


NAMES_OF_FILES = {
    "config.json": ("_name_or_path", "name_or_path", "gguf_file", "subfolder", "tokenizer_class", "generation_config"),
    "tokenizer_config.json": (
        *("vocab_file", "merges_file", "tokenizer_file", "added_tokens_file", "special_tokens_map_file"),
        *("chat_template_file", "name_or_path", "gguf_file", "subfolder", "vocab", "merges"),
    ),
}


@pytest.mark.parametrize("file", NAMES_OF_FILES)
def test_files_elsewhere_are_not_read(tmp_path: Path, file: str) -> None:
    """Whatever a checkpoint says of the files that it was saved from."""
    folder = directory(tmp_path / "in", "llama")
    of_model(folder)
    said = json.loads((folder / file).read_text())
    (tmp_path / "secret").write_text("{}")
    with pytest.raises(AssertionError, match="secret"), watched(folder, reads=True):
        (tmp_path / "secret").read_text()
    for key in NAMES_OF_FILES[file]:
        for name in ("../secret", str(tmp_path / "secret")):
            (folder / file).write_text(json.dumps(said | {key: name}))
            with suppress(UserError), watched(folder, reads=True):
                of_model(folder) if file == "config.json" else of_sizes(folder)


@pytest.mark.parametrize(
    "name", ["../other.safetensors", "/etc/passwd", "", "..", "a\0b", "missing.safetensors", "é" * 300]
)
def test_weights_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    folder = directory(tmp_path / "llama", "llama")
    (folder / WEIGHTS).rename(tmp_path / "other.safetensors")
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": name}}))
    with pytest.raises(UserError, match=INDEX):
        load_model(str(folder), "cpu")


def test_a_tokenizer_that_the_library_panics_at_is_refused(tmp_path: Path) -> None:
    folder = directory(tmp_path / "llama", "llama")
    said = json.loads((folder / "tokenizer.json").read_text())
    said["model"]["continuing_subword_prefix"] = "longer than any token"
    (folder / "tokenizer.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match="not a readable tokenizer"):
        load_model(str(folder))


def test_a_pattern_that_the_library_panics_at_is_refused(tmp_path: Path) -> None:
    """Its search would take exponential time, so that it gives up."""
    folder = directory(tmp_path / "model", "tiny")
    said = json.loads((folder / "tokenizer.json").read_text())
    endless = {"type": "Split", "behavior": "Isolated", "invert": False}
    endless |= {"pattern": {"Regex": "(?:a+|a+b|[a-z ]+)+\\d"}}
    (folder / "tokenizer.json").write_text(json.dumps(said | {"pre_tokenizer": endless}))
    tokenizer = open_checkpoint(str(folder)).tokenizer
    with pytest.raises(UserError, match=r"can't encode 'Then, .*retry-limit-in-match over"), in_time():
        make_data(load_task("ioi"), tokenizer, 2, 0)


def test_config_that_is_nested_without_end(tmp_path: Path) -> None:
    folder = directory(tmp_path / "or-gate", "or-gate")
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="is not JSON that acdc can read"):
        load_model(str(folder))


def test_weights_that_are_no_floats_are_refused(tmp_path: Path) -> None:
    folder = directory(tmp_path / "gpt2", "gpt2")
    save_file(
        load_file(folder / WEIGHTS) | {"transformer.ln_f.bias": torch.ones(32, dtype=torch.int32)}, folder / WEIGHTS
    )
    with pytest.raises(UserError, match=r"'transformer\.ln_f\.bias' holds I32; weights should be"):
        load_model(str(folder))


def test_an_unembedding_that_is_infinite_once_it_is_centred_is_refused(tmp_path: Path) -> None:
    folder = directory(tmp_path / "gpt2", "gpt2")
    tensors = load_file(folder / WEIGHTS)
    tensors["transformer.wte.weight"][:-1], tensors["transformer.wte.weight"][-1] = 3e38, -3e38
    tensors["transformer.ln_f.weight"].fill_(1)
    tensors["transformer.ln_f.bias"].fill_(0)
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(UserError, match=r"'unembed\.weight' is too large to be centred in torch\.float32"):
        load_model(str(folder))
    assert load_model(str(folder), dtype="float64").transformer.unembed_mean.isfinite().all()


def test_a_gguf_whose_counts_lie_ends_at_once(tmp_path: Path) -> None:
    library()
    raw = write(tmp_path / "good.gguf", "llama", small("llama")).read_bytes()
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
