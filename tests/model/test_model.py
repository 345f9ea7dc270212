"""The transformer gives Hugging Face's logits; its pieces add up to the whole; checkpoints are read or refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

from acdc.errors import UserError
from acdc.model.checkpoint import UNSUPPORTED
from acdc.model.load import load_model
from acdc.model.transformer import VOCAB_BLOCK
from tests.support.checkpoints import checkpoint
from tests.support.random_models import random_model

OPTIONS = {
    "plain": {},
    "one head": {"n_head": 1},
    "narrow mlp": {"n_inner": 20},
    "relu": {"activation_function": "relu"},
    "gelu": {"activation_function": "gelu"},
    "inverse layer scale": {"scale_attn_by_inverse_layer_idx": True},
    "no attention scale": {"scale_attn_weights": False, "initializer_range": 0.2},
    "upcast": {
        "scale_attn_by_inverse_layer_idx": True,
        "reorder_and_upcast_attn": True,
        "attn_implementation": "eager",
    },
    "untied": {"tie_word_embeddings": False},
    "eps": {"layer_norm_epsilon": 1e-2},
    "wide vocabulary": {"vocab_size": VOCAB_BLOCK + 7},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float64", 1e-9)])
def test_logits_are_hugging_faces(tmp_path, options, dtype, tolerance):
    theirs = checkpoint(tmp_path, **options).to(getattr(torch, dtype))
    for block in theirs.transformer.h:  # scores in float32, a flag that Hugging Face's code does not take in float64
        block.attn.reorder_and_upcast_attn &= dtype == "float32"
    ours = load_model(str(tmp_path), "cpu", dtype).transformer
    tokens = torch.randint(0, ours.config.vocab_size, (3, 9), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = theirs(tokens).logits
        _, stream = ours.run(tokens, torch.zeros(3, dtype=torch.long))
        found = ours.logits(ours.normalise(stream[-1]))
    assert (found - expected).abs().max() < tolerance, (found - expected).abs().max()


def test_left_padding_is_hugging_faces(tmp_path):
    theirs = checkpoint(tmp_path).double()
    ours = load_model(str(tmp_path), "cpu", "float64").transformer
    tokens, pad = torch.randint(0, 23, (2, 7)), torch.tensor([0, 3])
    real = torch.arange(7) >= pad[:, None]
    positions = (real.long().cumsum(1) - 1).clamp(min=0)
    with torch.inference_mode():
        expected = theirs(tokens, attention_mask=real.long(), position_ids=positions).logits
        found = ours.logits(ours.normalise(ours.run(tokens, pad)[1][-1]))
    assert (found - expected)[real].abs().max() < 1e-9


@pytest.mark.parametrize("norm", ["layer", "none"])
@pytest.mark.parametrize("split", [False, True])
def test_the_pieces_add_up_to_the_stream(norm, split):
    model = random_model(3, norm=norm, split_position=split, n_layers=3)
    tokens, pad = torch.randint(0, 11, (2, 6)), torch.tensor([0, 1])
    activations, stream = model.run(tokens, pad)
    total = sum(model.written(activations, s) for s in model.config.graph().senders)
    total = total + sum(model.weights[f"layers.{i}.o.bias"] for i in range(3))
    assert torch.allclose(total, stream[-1], atol=1e-12)


def test_blocked_logsumexp_and_centred_logits():
    model = random_model(0, vocab_size=50, vocab_out=3 * VOCAB_BLOCK + 5)
    h = torch.randn(4, 8, dtype=torch.float64)
    log_p = model.logits(h).log_softmax(-1)
    ids = torch.randint(0, model.config.vocab_out, (4, 3))
    found = model.centred_logits(h, ids) - model.logsumexp(h)[:, None]
    assert torch.allclose(found, log_p.gather(1, ids), atol=1e-12)


def write_index(folder, content):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


# A change of the folder, of config.json or of the tensors, and what is said.
BAD_FILES = {
    "no config": (lambda f: (f / "config.json").unlink(), "config.json: not found"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json, line 1: is not JSON"),
    "config is no object": (lambda f: (f / "config.json").write_text("[]"), "config.json: should be a JSON object"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no weights; expected model.safetensors"),
    "pickled weights only": (lambda f: (f / "model.safetensors").rename(f / "model.bin"), "pickled weights"),
    "truncated weights": (lambda f: truncate(f / "model.safetensors"), "not a readable safetensors file"),
    "empty weights": (lambda f: (f / "model.safetensors").write_bytes(b""), "not a readable safetensors file"),
    "missing shard": (
        lambda f: write_index(f, {"weight_map": {"a": "config.json", "b": "model-2.safetensors"}}),
        "model-2.safetensors, which doesn't exist",
    ),
    "index without a map": (lambda f: write_index(f, {}), "index.json: has no weight_map"),
    "index of another kind": (lambda f: write_index(f, {"weight_map": ["a"]}), "index.json: has no weight_map"),
    "index of numbers": (lambda f: write_index(f, {"weight_map": {"a": 1}}), "index.json: has no weight_map"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer"),
    "broken tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), "not a readable tokenizer"),
}
BAD_CONFIGS = {
    "no architecture": ({"model_type": None}, "model_type None is not supported"),
    "another architecture": (
        {"model_type": "bert"},
        "model_type 'bert' is not supported; supported: gemma2, gemma3_text, gpt2",
    ),
    "a missing key": ({"n_head": None}, "not a readable config (StrictDataclassFie"),
    "text for a number": ({"n_embd": "wide"}, "Field 'n_embd' expected int, got str (value: 'wide')"),
    "no heads": ({"n_head": 0}, "the width 16 is not a multiple of the number of heads 0"),
    "no layers": ({"n_layer": 0}, "n_layers is 0; it must be a whole number from 1 up"),
    "no epsilon": ({"layer_norm_epsilon": "small"}, "'layer_norm_epsilon' expected float, got str"),
    "odd heads": ({"n_head": 3}, "the width 16 is not a multiple of the number of heads 3"),
    "cross attention": ({"add_cross_attention": True}, "'transformer.h.0.crossattention.c_attn.bias' is missing (and"),
    "unknown activation": ({"activation_function": "gelo"}, "Did you mean 'gelu'"),
    "soft cap": ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is set, but logits with a soft cap"),
    "scores' soft cap": ({"attn_logit_softcapping": 50.0}, "attention scores with a soft cap"),
    "both directions": ({"use_bidirectional_attention": True}, "attention to later tokens is not supported"),
    "quantized": ({"quantization_config": {"quant_method": "fp8"}}, "quantized weights are not supported"),
    "another width": ({"vocab_size": 24}, "'transformer.wte.weight' has shape (23, 16), not (24, 16)"),
}
BAD_TENSORS = {
    "missing": ({"h.1.mlp.c_fc.weight": None}, "tensor 'transformer.h.1.mlp.c_fc.weight' is missing"),
    "no norm": ({"h.1.ln_1.weight": None}, "tensor 'transformer.h.1.ln_1.weight' is missing"),
    "shape": ({"h.0.attn.c_proj.weight": torch.zeros(16, 15)}, "has shape (16, 15), not (16, 16)"),
    "NaN": ({"wpe.weight": torch.full((12, 16), torch.nan)}, "'position.weight' contains NaN or infinity"),
    "infinity": ({"h.0.ln_1.bias": torch.full((16,), torch.inf)}, "contains NaN or infinity"),
    "infinities of both signs": (
        {"wpe.weight": torch.tensor([1, -1] * 96).view(12, 16) / 0},
        "contains NaN or infinity",
    ),
    "another head": (
        {"score.weight": torch.zeros(2, 16)},
        "tensor 'transformer.score.weight' has no place in a model of this",
    ),
    "a norm's fixed deviation": (
        {f"h.{i}.ln_1.average_std_buffer": torch.ones(12) for i in range(2)},
        "tensor 'transformer.h.0.ln_1.average_std_buffer' has no place in a model of this family (and 1 more)",
    ),
}


def refused(folder, message):
    with pytest.raises(UserError) as error:
        load_model(str(folder), "cpu")
    assert message in str(error.value)
    assert str(folder) in str(error.value) or str(error.value).startswith("model config: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("damage", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files_are_one_clear_line(tmp_path, damage, message):
    checkpoint(tmp_path)
    damage(tmp_path)
    refused(tmp_path, message)


@pytest.mark.parametrize(("change", "message"), BAD_CONFIGS.values(), ids=BAD_CONFIGS)
def test_bad_configs_are_one_clear_line(tmp_path, change, message):
    checkpoint(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refused(tmp_path, message)


@pytest.mark.parametrize(("change", "message"), BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_bad_tensors_are_one_clear_line(tmp_path, change, message):
    checkpoint(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path) | {f"transformer.{name}": x for name, x in change.items()}
    save_file({name: x.clone() for name, x in tensors.items() if x is not None}, path)
    refused(tmp_path, message)


def test_tensors_that_change_nothing_are_no_obstacle(tmp_path):
    """Masks that old versions of Hugging Face stored, and a second copy of a tied head."""
    checkpoint(tmp_path)
    path = tmp_path / "model.safetensors"
    before, tensors = load_model(str(tmp_path), "cpu"), load_file(path)
    tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, 12, 12, dtype=torch.bool).tril()
    tensors["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    save_file(tensors, path)
    after = load_model(str(tmp_path), "cpu")
    assert after.hash != before.hash
    for name, x in before.transformer.weights.items():
        assert torch.allclose(after.transformer.weights[name], x, atol=1e-6)


def test_large_weights_are_finite(tmp_path):
    """Their sum overflows."""
    checkpoint(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file(load_file(path) | {"transformer.h.0.mlp.c_fc.bias": torch.full((64,), 3e38)}, path)
    load_model(str(tmp_path), "cpu")


@pytest.mark.parametrize("family", UNSUPPORTED)
def test_families_that_are_not_supported_are_refused_with_the_reason(tmp_path, family):
    AutoConfig.for_model(family).save_pretrained(tmp_path)
    refused(
        tmp_path, f"'{family}' is not supported: {UNSUPPORTED[family]}; supported: gemma2, gemma3_text, gpt2, gpt_neo"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_type": "linear"}, "Missing required keys in `rope_parameters` for 'rope_type'='linear': {'factor'}"),
        ({"rope_type": "spiral"}, "spiral"),
        ({"rope_theta": "far"}, "not a readable config (TypeError: unsupported operand"),
    ],
)
def test_rotations_that_are_not_known(tmp_path, change, message):
    sizes = {"vocab_size": 4, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2, bos_token_id=0, eos_token_id=0)
    checkpoint(tmp_path)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text())
    raw["rope_parameters"] |= change
    path.write_text(json.dumps(raw))
    refused(tmp_path, message)
