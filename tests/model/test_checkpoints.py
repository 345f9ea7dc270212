"""Odd but valid checkpoints: the logits are those of transformers, read from the same files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from acdc.errors import ModelError
from acdc.model import huggingface, llama
from acdc.model.checkpoint import FAMILIES
from acdc.model.load import load_model
from acdc.task.tokenize import Split
from tests.support.checkpoints import tokenizer

VOCABULARY = 23
N = 12  # tokens of the prompts that are compared
COMMON = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.4}
WIDTHS = {"hidden_size": 16, "max_position_embeddings": 32}
LAYERS = {"num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 24}
GROUPED = {**COMMON, **WIDTHS, **LAYERS, "num_key_value_heads": 2}
BASES: dict[str, dict[str, Any]] = {
    "gpt2": {**COMMON, "n_layer": 3, "n_head": 4, "n_embd": 16, "n_positions": 32},
    "gpt_neo": {
        **COMMON,
        **WIDTHS,
        "num_layers": 3,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1], [["local"], 1]],
    }
    | {"window_size": 3},
    "gpt_neox": {**COMMON, **LAYERS, **WIDTHS, "hidden_size": 64, "initializer_range": 0.2},
    "llama": GROUPED,
    "mistral": {**GROUPED, "sliding_window": None},
    "qwen2": GROUPED,
    "qwen3": {**GROUPED, "head_dim": 8},
}
MORE: dict[str, dict[str, Any]] = {  # of which only mistakes are tried
    "gemma2": {**GROUPED, "head_dim": 8, "pad_token_id": None, "attn_logit_softcapping": 2.0},
    "gemma3_text": {
        **GROUPED,
        "head_dim": 8,
        "pad_token_id": None,
        "layer_types": ["sliding_attention", "full_attention"],
    }
    | {"num_hidden_layers": 2},
    "granite": {**GROUPED, "residual_multiplier": 0.5},
}
ROTARY = ("gpt_neox", "llama", "mistral", "qwen2", "qwen3")
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 16}
ROPES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": YARN,
    "llama3": LLAMA3,
}
Change = Callable[[Path], None]


def built(family: str, folder: Path, **options: Any) -> Path:
    """A random checkpoint with a tokenizer, whose norms and biases are not 1 and 0."""
    torch.manual_seed(0)
    module = hf.AutoModelForCausalLM.from_config(
        hf.AutoConfig.for_model(family, **{**(BASES | MORE)[family], **options})
    )
    for name, p in module.named_parameters():
        if name.endswith("bias") or "norm" in name or "ln_" in name:
            p.data += 0.3 * torch.randn_like(p)
    module.save_pretrained(folder)
    tokenizer(folder)
    return folder


def config(**changes: Any) -> Change:
    """Change keys of config.json; None removes one."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        said = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in said.items() if value is not None}))

    return change


def tensors(edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Change:
    """Change the tensors of the only file."""

    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        changed = edit(load_file(path))
        save_file({name: x.clone().contiguous() for name, x in changed.items()}, path, {"format": "pt"})

    return change


def another_head(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    head = "embed_out.weight" if "embed_out.weight" in found else "lm_head.weight"
    width = next(x.shape[1] for x in found.values() if x.ndim == 2 and x.shape[0] == VOCABULARY)
    return found | {head: torch.randn(VOCABULARY, width)}


def in_dtype(dtype: torch.dtype) -> Change:
    return tensors(lambda found: {name: x.to(dtype) for name, x in found.items()})


def shards(folder: Path) -> None:
    """As a large model is saved."""
    hf.AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="8KB")
    (folder / "model.safetensors").unlink()
    assert len(list(folder.glob("model-*.safetensors"))) > 1


def old_shards_beside(folder: Path) -> None:
    """An index of former shards, which are there, too, and hold other weights."""
    found = load_file(folder / "model.safetensors")
    save_file({name: x * 0 for name, x in found.items()}, folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(found, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def stale_index(folder: Path) -> None:
    """The same without the shards."""
    old_shards_beside(folder)
    (folder / "model-00001-of-00001.safetensors").unlink()


def without_prefix(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As the base model alone is saved, which GPT-2's own files are."""
    return {
        name.removeprefix("transformer.").removeprefix("model."): x for name, x in found.items() if "lm_" not in name
    }


def rope_of_version_4(**scaling: Any) -> Change:
    """Keys of rotary embeddings as transformers wrote them before version 5."""
    return config(rope_parameters=None, rope_theta=5000.0, rope_scaling=scaling or None)


def cases() -> Iterator[tuple[str, str, dict[str, Any], tuple[Change, ...]]]:
    """Family, what is odd, options of the config, and changes of the files."""
    for family in BASES:
        for tied in (True, False):
            yield family, "tied" if tied else "untied", {"tie_word_embeddings": tied}, ()
        yield family, "tied, another head in the file", {"tie_word_embeddings": True}, (tensors(another_head),)
        yield family, "no key about the head", {"tie_word_embeddings": False}, (config(tie_word_embeddings=None),)
        yield family, "bfloat16", {}, (in_dtype(torch.bfloat16),)
        yield family, "float16, shards", {}, (in_dtype(torch.float16), shards)
        yield family, "float64", {}, (in_dtype(torch.float64),)
        yield family, "old shards beside", {}, (old_shards_beside,)
    for family in ROTARY:
        for kind, settings in ROPES.items():
            yield family, kind, {"rope_parameters": {"rope_theta": 10000.0, **settings}}, ()
        yield family, "version 4, no scaling", {}, (rope_of_version_4(),)
        yield family, "version 4, linear", {}, (rope_of_version_4(type="linear", factor=4.0),)
        both = config(rope_theta=5000.0, rope_scaling={"rope_type": "linear", "factor": 4.0})
        yield family, "linear and rope_parameters", {}, (both,)
        yield family, "yarn and rope_parameters", {}, (config(rope_scaling=YARN),)
    for family in ("llama", "mistral", "qwen2", "qwen3"):
        longrope = {"rope_type": "longrope", "factor": 2.0, "original_max_position_embeddings": 16}
        halves = BASES[family].get("head_dim", 4) // 2
        longrope |= {"short_factor": [1.5] * halves, "long_factor": [3.0] * halves}
        yield family, "longrope", {"rope_parameters": {"rope_theta": 10000.0, **longrope}}, ()
        yield family, "one shared head", {"num_key_value_heads": 1}, ()
        yield family, "no shared heads", {"num_key_value_heads": 4}, ()
        yield family, "wide heads", {"head_dim": 12}, ()
    for family in ("mistral", "qwen2", "qwen3"):
        window = {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1}
        yield family, "a window of 8", window, ()
        kinds = ["full_attention", "sliding_attention", "full_attention"]
        yield family, "a window of 8 and layer_types", window | {"layer_types": kinds}, ()
        yield family, "a window of 8 and full attention", window, (config(layer_types=["full_attention"] * 3),)
        yield family, "a window that is not used", window | {"use_sliding_window": False, "sliding_window": 8}, ()
    yield "llama", "all biases", {"attention_bias": True, "mlp_bias": True}, ()
    yield "qwen3", "biases", {"attention_bias": True}, ()
    yield "gpt_neox", "no biases of attention", {"attention_bias": False}, ()
    yield "gpt_neox", "serial", {"use_parallel_residual": False}, ()
    yield (
        "gpt_neox",
        "all dimensions rotated",
        {},
        (config(rope_parameters=None, rotary_pct=1.0, rotary_emb_base=5000),),
    )
    yield (
        "gpt_neo",
        "no attention_types",
        {"num_layers": 24, "attention_types": [[["global", "local"], 12]]},
        (config(attention_types=None, attention_layers=None),),
    )
    yield "gpt2", "without a prefix", {}, (tensors(without_prefix),)
    yield "gpt2", "stale index", {}, (stale_index,)
    yield "gpt2", "one head, narrow MLP", {"n_head": 1, "n_inner": 20}, ()
    yield "gpt2", "scaled by layer", {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True}, ()
    yield "llama", "without a prefix", {"tie_word_embeddings": True}, (tensors(without_prefix),)


CASES = {f"{family}: {what}": (family, options, changes) for family, what, options, changes in cases()}


def logits(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    """What transformers predicts."""
    module = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.inference_mode():
        out: torch.Tensor = module(tokens).logits
    return out


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(tmp_path: Path, case: str) -> None:
    family, options, changes = CASES[case]
    folder = built(family, tmp_path, **options)
    for change in changes:
        change(folder)
    tokens = torch.randint(0, VOCABULARY, (3, N), generator=torch.Generator().manual_seed(1))
    expected = logits(folder, tokens)
    assert expected.std() > 0.1, "logits that are all alike compare nothing"
    model = load_model(str(folder), "cpu")
    found = model.transformer.logits(
        model.transformer.normalise(model.transformer.run(tokens, torch.zeros(3).long())[1][-1])
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_there_are_many() -> None:
    assert len(CASES) >= 60


# ---------------------------------------------------------------- verification

MISTAKES = {  # a family's file, broken in one place
    "gpt2, a norm": ("gpt2", "d_mlp=", "norm_eps=0.5, d_mlp="),
    "gpt2, a scale": ("gpt2", "c.d_head**-0.5", "c.d_head**-0.6"),
    "gpt_neo, a norm": ("gpt_neo", "d_mlp=", "norm_eps=0.5, d_mlp="),
    "gpt_neo, windows": ("gpt_neo", 'kind == "local"', 'kind == "global"'),
    "gpt_neox, a norm": ("gpt_neox", "d_mlp=", "norm_eps=0.5, d_mlp="),
    "gpt_neox, a scale": ("gpt_neox", 't.scale(to + "q", scale)', 't.scale(to + "q", scale * 1.1)'),
    "gpt_neox, a rotation": ("gpt_neox", "    for i in", '    t.out["rotary.frequencies"] *= 1.1\n    for i in'),
    "llama, a norm": ("llama", "d_mlp=", "norm_eps=0.5, d_mlp="),
    "llama, a scale": ("llama", 't.scale(to + "q", scale)', "pass"),
    "llama, a rotation": ("llama", "    t.put_un", '    t.out["rotary.frequencies"] *= 1.1\n    t.put_un'),
    "mistral, windows": ("mistral", "else config.sliding_window", "else None"),
    "qwen2, windows": ("qwen2", 'k == "sliding_attention"', 'k == "full_attention"'),
    "qwen3, a scale": ("qwen3", 'norms["q"] * scale', 'norms["q"]'),
    "qwen3, a norm": ("qwen3", "d_mlp=", "norm_eps=0.5, d_mlp="),
    "gemma2, a cap": ("gemma2", "config.attn_logit_softcapping or 0.0", "0.0"),
    "gemma2, norms": ("gemma2", "t.shift_norms()", "pass"),
    "gemma3, rotations": ("gemma3_text", "local_rotary=third", "local_rotary=False"),
    "granite, a factor": ("granite", "config.residual_multiplier", "1.0"),
}
WINDOW = {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_familys_file_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: str) -> None:
    family, right, wrong = MISTAKES[mistake]
    folder = built(family, tmp_path, **(WINDOW if family in ("mistral", "qwen2") else {}))
    good = load_model(str(folder), "cpu").verification
    assert good and good.difference < 1e-4 and good.spread > 0.1
    source = Path(str(FAMILIES[family].__file__)).read_text()
    assert right in source
    broken = ModuleType(family)
    exec(compile(source.replace(right, wrong), family, "exec"), broken.__dict__)
    monkeypatch.setitem(FAMILIES, family, broken)
    with pytest.raises(ModelError) as error:
        load_model(str(folder), "cpu")
    said = re.fullmatch(
        r".*: the logits differ by up to (\S+) from those of transformers, whose spread is (\S+);.*", str(error.value)
    )
    assert said and float(said[1]) > 1e-3 * float(said[2]) and float(said[2]) == pytest.approx(good.spread, rel=0.01)


def test_the_prompts_of_a_task_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The window of 8 shows only on prompts that are longer."""
    folder = built("mistral", tmp_path, **WINDOW)
    source = Path(str(llama.__file__)).read_text().replace("else config.sliding_window", "else None")
    broken = ModuleType("llama")
    exec(compile(source, "llama", "exec"), broken.__dict__)
    monkeypatch.setitem(FAMILIES, "mistral", broken)
    for length in (6, 12):
        tokens = np.random.default_rng(0).integers(0, VOCABULARY, (2, length))
        none = np.zeros((0, 2), dtype=np.int64)
        split = Split(tokens, tokens, np.array([0, 2]), none, none, none)
        if length == 6:
            found = load_model(str(folder), "cpu", "float32", split).verification
            assert found and found.n_prompts == 2
        else:
            with pytest.raises(ModelError, match="the logits differ by up to"):
                load_model(str(folder), "cpu", "float32", split)


def test_models_says_how_far_the_logits_are_from_those_of_transformers(call: Any, tmp_path: Path) -> None:
    built("llama", tmp_path / "mine")
    code, out, err = call("models", str(tmp_path / "mine"))
    assert code == 0, err
    assert re.search(
        r"yes: its logits, of standard deviation \d.*, differ from those of\s+transformers by at most \d\.\de-\d\d\n",
        out,
    )
    assert "3 layers, 4 heads, 16 wide, 23 tokens, 32 positions" in out


# ---------------------------------------------------------------- tokenizers

BYTES = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "17", "Hi", "<|endoftext|>"]


def bytes_tokenizer(folder: Path, model_type: str, **more: Any) -> Path:
    """GPT-2's older form of a tokenizer, in two files."""
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(BYTES)}))
    (folder / "merges.txt").write_text("#version: 0.2\n1 7\nH i\n")
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    if more:
        (folder / "tokenizer_config.json").write_text(json.dumps(more))
    return folder


def test_vocabulary_and_merges_are_split_as_the_family_does(tmp_path: Path) -> None:
    gpt2 = huggingface.read_tokenizer(bytes_tokenizer(tmp_path / "gpt2", "gpt2"), "gpt2")
    qwen = huggingface.read_tokenizer(bytes_tokenizer(tmp_path / "qwen2", "qwen2"), "qwen2")
    for found in (gpt2, qwen):
        assert found.pieces(found.encode("<|endoftext|>Hi")) == ["<|endoftext|>", "Hi"]
    assert gpt2.pieces(gpt2.encode("1732")) == ["17", "3", "2"]
    assert qwen.pieces(qwen.encode("1732")) == ["1", "7", "3", "2"]
    assert gpt2.bos_id == BYTES.index("<|endoftext|>") and qwen.bos_id is None
    assert gpt2.unk_id is None, "the end of a text is no unknown word"


@pytest.mark.parametrize("bos", ["<|startoftext|>", "<｜begin▁of▁sentence｜>", "[CLS]", None])
def test_bos_is_the_one_that_the_tokenizer_states(tmp_path: Path, bos: str | None) -> None:
    words = ["<|endoftext|>", "<s>", "a", "<|startoftext|>", "<｜begin▁of▁sentence｜>", "[CLS]", "<unk>"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    hf.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, unk_token="<unk>").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    found = huggingface.read_tokenizer(tmp_path, "mine")
    assert found.bos_id == (words.index(bos) if bos else None)
    assert found.unk_id == words.index("<unk>")
