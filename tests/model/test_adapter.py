"""LoRA adapters: a folder with what is added to the weights of a model elsewhere."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from acdc.errors import ModelError
from acdc.model.load import load_model
from tests.support.checkpoints import WORDS, checkpoint, float64_norm

PLAIN = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 2,
    "lora_alpha": 6,
    "target_modules": ["q_proj", "down_proj"],
}
RANK = PLAIN["r"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    checkpoint(folder)  # for its tokenizer
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 23,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    LlamaForCausalLM(LlamaConfig(**sizes, bos_token_id=0, eos_token_id=0, initializer_range=0.4)).save_pretrained(
        folder
    )
    return folder


@pytest.fixture
def adapter(base, tmp_path):
    """Write an adapter of the base: options of its config, and its tensors."""

    def write(tensors=None, **options):
        folder = tmp_path / "adapter"
        folder.mkdir(exist_ok=True)
        config = {**PLAIN, "base_model_name_or_path": str(base), **options}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        save_file(tensors or random(base), folder / "adapter_model.safetensors")
        return folder

    return write


def random(base, rank=RANK):
    """Random A and B for the weights that PLAIN names."""
    out = {}
    for name, weight in load_file(base / "model.safetensors").items():
        if any(f"{part}.weight" in name for part in PLAIN["target_modules"]):
            key = f"base_model.model.{name.removesuffix('.weight')}"
            out[f"{key}.lora_A.weight"] = torch.randn(rank, weight.shape[1])
            out[f"{key}.lora_B.weight"] = torch.randn(weight.shape[0], rank)
    assert len(out) == 8
    return out


def by_hand(base, tensors, factor):
    """The base with factor · B A added to its weights."""
    module = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64).eval()
    for name, weight in module.named_parameters():
        key = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{key}.lora_A.weight" in tensors:
            a, b = (tensors[f"{key}.lora_{x}.weight"].double() for x in "AB")
            weight.data += factor * b @ a
    return module


def logits(model, tokens):
    stream = model.run(tokens, torch.zeros(1, dtype=torch.int64))[1][-1]
    return model.logits(model.normalise(stream))


@pytest.mark.parametrize(
    ("options", "factor"),
    [
        ({}, 6 / 2),
        ({"use_rslora": True}, 6 / 2**0.5),
        ({"alpha_pattern": {"q_proj": 6, "down_proj": 6}, "lora_alpha": 1}, 3),
    ],
)
def test_an_adapter_is_added_to_its_base(base, adapter, options, factor, monkeypatch):
    monkeypatch.setattr("transformers.models.llama.modeling_llama.LlamaRMSNorm.forward", float64_norm)
    tensors = random(base)
    model = load_model(str(adapter(tensors, **options)), "cpu", "float64")
    tokens = torch.randint(0, 23, (1, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = by_hand(base, tensors, factor)(tokens).logits
        plain = by_hand(base, tensors, 0)(tokens).logits
        found = logits(model.transformer, tokens)
    assert (found - expected).abs().max() < 1e-9
    assert (plain - expected).abs().max() > 0.1
    assert model.verification.difference < 1e-4  # eager attention has a softmax in float32


Q = ["q_proj"]
SAVED = {
    "weights in magnitude and direction": {"target_modules": Q, "use_dora": True},
    "another rank in a layer": {"target_modules": Q, "rank_pattern": {"layers.1.self_attn.q_proj": 4}},
    "one layer": {"target_modules": Q, "layers_to_transform": [1]},
    "every linear layer": {"target_modules": "all-linear"},
    "a pattern": {"target_modules": r".*\.(q|down)_proj"},
    "a trained head": {"target_modules": Q, "modules_to_save": ["lm_head"]},
    "an embedding": {"target_modules": ["embed_tokens", "q_proj"]},
}


def saved(module, folder, **options):
    """Write an adapter of random weights as peft does."""
    adapted = get_peft_model(module, LoraConfig(task_type="CAUSAL_LM", r=2, **options))
    for name, weight in adapted.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            weight.data = torch.randn_like(weight)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return adapted.eval()


@pytest.mark.parametrize("case", SAVED)
def test_what_peft_saves_gives_its_logits(base, tmp_path, case):
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager").eval()
    theirs = saved(module, tmp_path, **SAVED[case])
    tokens = torch.randint(0, 23, (1, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(tokens).logits
        found = logits(load_model(str(tmp_path), "cpu").transformer, tokens)
    assert (found - expected).abs().max() < 1e-4


def test_an_adapted_head_that_is_tied_to_the_embedding_is_not_merged_silently(base, tmp_path):
    """Added to the head's weights, the adapter would change the embedding, too."""
    module = AutoModelForCausalLM.from_pretrained(base)
    sizes = module.config.to_dict() | {"tie_word_embeddings": True}
    tied = LlamaForCausalLM(LlamaConfig(**sizes))
    tied.save_pretrained(tmp_path / "tied")
    (tmp_path / "tied" / "tokenizer.json").write_bytes((base / "tokenizer.json").read_bytes())
    module = AutoModelForCausalLM.from_pretrained(tmp_path / "tied")
    saved(module, tmp_path / "adapter", target_modules=["lm_head"])
    with pytest.raises(ModelError, match="the logits differ by up to"):
        load_model(str(tmp_path / "adapter"), "cpu")


def test_the_hash_tells_adapters_apart(base, adapter):
    hashes = {load_model(str(base), "cpu").hash, load_model(str(adapter()), "cpu").hash}
    hashes.add(load_model(str(adapter(lora_alpha=1)), "cpu").hash)
    assert len(hashes) == 3


def test_the_adapters_own_tokenizer_is_taken(base, adapter):
    folder = adapter()
    assert load_model(str(folder), "cpu").tokenizer.pieces([0]) == ["a"]
    text = json.loads((base / "tokenizer.json").read_text())
    text["model"]["vocab"] = {"z" if word == "a" else word: i for word, i in WORDS.items()}
    (folder / "tokenizer.json").write_text(json.dumps(text))
    assert load_model(str(folder), "cpu").tokenizer.pieces([0]) == ["z"]


BROKEN = {
    "a base that isn't there": ({"base_model_name_or_path": "/no/such/folder"}, "/no/such/folder: no such directory"),
    "no base": ({"base_model_name_or_path": None}, "a base_model_name_or_path, and"),
    "a number as base": ({"base_model_name_or_path": 3}, "a base_model_name_or_path, and"),
    "a bundled base": ({"base_model_name_or_path": "tiny"}, "tiny is an adapter itself, or bundled"),
    "another kind": ({"peft_type": "PREFIX_TUNING"}, "it needs peft_type LORA"),
    "no kind": ({"peft_type": None}, "it needs peft_type LORA"),
    "a list as kind": ({"peft_type": []}, "it needs peft_type LORA"),
    "another rank": ({"r": 3}, "size mismatch"),
    "a huge rank": ({"r": 10**12}, "rank 1000000000000, but no tensor"),
    "a rank that is text": ({"r": "2"}, "rank '2', but no tensor"),
    "no rank": ({"r": None}, "rank None, but no tensor"),
    "a huge rank in a pattern": ({"rank_pattern": {"q_proj": 10**12}}, "rank 1000000000000, but no tensor"),
    "a pattern that is a list": ({"rank_pattern": [2]}, "not a readable LoRA adapter"),
    "a module of Python": (
        {"megatron_config": {"a": 1}, "megatron_core": "antigravity"},
        "megatron_config is {'a': 1}",
    ),
    "layers twice": (
        {"layer_replication": [[0, 2], [1, 2]]},
        "layer_replication is [[0, 2], [1, 2]]; adapters with it",
    ),
    "a key of tomorrow": ({"use_magic": True}, "use_magic is True; adapters with it"),
    "other targets": ({"target_modules": ["k_proj", "down_proj"]}, "k_proj.lora_A.weight' is missing"),
    "fewer targets": ({"target_modules": ["q_proj"]}, "down_proj.lora_A.weight' has no place in the base"),
    "unknown targets": ({"target_modules": ["c_attn"]}, "not a readable LoRA adapter"),
    "targets that are no names": ({"target_modules": 3}, "not a readable LoRA adapter"),
    "a regular expression that is none": ({"target_modules": "("}, "not a readable LoRA adapter"),
    "text as alpha": ({"lora_alpha": "much"}, "not a readable LoRA adapter"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_config_is_one_message(adapter, case):
    options, expected = BROKEN[case]
    folder = adapter(**options)
    with pytest.raises(ModelError) as error:
        load_model(str(folder), "cpu")
    assert expected in str(error.value)
    assert str(error.value).startswith(str(folder)) and "\n" not in str(error.value)
    assert "antigravity" not in sys.modules


def test_an_adapter_of_an_adapter_is_refused(adapter, tmp_path):
    folder = adapter()
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(folder)}))
    with pytest.raises(ModelError, match="is an adapter itself, or bundled"):
        load_model(str(folder), "cpu")


def test_broken_tensors_are_one_message(base, adapter):
    tensors = random(base)
    some = min(tensors)
    wrong = {
        "is missing": {name: t for name, t in tensors.items() if name != some},
        "'more' has no place in the base": tensors | {"more": torch.zeros(2)},
        "size mismatch": tensors | {some: torch.zeros(2, 5)},
    }
    for expected, changed in wrong.items():
        with pytest.raises(ModelError, match=expected) as error:
            load_model(str(adapter(changed)), "cpu")
        assert "\n" not in str(error.value)
    weights = adapter(tensors) / "adapter_model.safetensors"
    whole = weights.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"PK\x03\x04"):
        weights.write_bytes(content)
        with pytest.raises(ModelError, match="not a readable LoRA adapter"):
            load_model(str(weights.parent), "cpu")
    weights.rename(weights.with_suffix(".bin"))  # a pickle is not read
    with pytest.raises(ModelError, match=r"and adapter_model\.safetensors beside it"):
        load_model(str(weights.parent), "cpu")


def test_without_peft_it_is_named(adapter, monkeypatch):
    folder = adapter()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"needs peft: pip install 'acdc-circuits\[lora\]'"):
        load_model(str(folder), "cpu")
