"""The transformer gives Hugging Face's logits; its pieces add up to the whole; checkpoints are read or refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from acdc.errors import ModelError
from acdc.model.load import load_model
from acdc.model.transformer import VOCAB_BLOCK
from tests.random_models import random_model

OPTIONS = {
    "plain": {},
    "one head": {"n_head": 1},
    "narrow mlp": {"n_inner": 20},
    "relu": {"activation_function": "relu"},
    "gelu": {"activation_function": "gelu"},
    "inverse layer scale": {"scale_attn_by_inverse_layer_idx": True},
    "untied": {"tie_word_embeddings": False},
    "eps": {"layer_norm_epsilon": 1e-2},
    "wide vocabulary": {"vocab_size": VOCAB_BLOCK + 7},
}
WORDS = {"a": 0, "b": 1, "c": 2, "<unk>": 3}


def checkpoint(folder, seed=0, **options):
    """A random GPT-2 checkpoint in `folder`, as Hugging Face saves it."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(seed)
    config = GPT2Config(
        **{
            "n_layer": 2,
            "n_head": 4,
            "n_embd": 16,
            "n_positions": 12,
            "vocab_size": 23,
            "initializer_range": 0.4,
            "bos_token_id": 0,
            "eos_token_id": 0,
            **options,
        }
    )
    model = GPT2LMHeadModel(config).eval()
    for name, p in model.named_parameters():  # Hugging Face starts these at 0 and 1, where mistakes would not show
        if name.endswith("bias") or "ln_" in name:
            p.data += 0.3 * torch.randn_like(p)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return model


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float64", 1e-9)])
def test_logits_are_hugging_faces(tmp_path, options, dtype, tolerance):
    theirs = checkpoint(tmp_path, **options).to(getattr(torch, dtype))
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
    total = sum(model.written(activations, s) for s in model.config.graph().senders) + model.bias(3)
    assert torch.allclose(total, stream[-1], atol=1e-12)


def test_blocked_logsumexp_and_centred_logits():
    model = random_model(0, vocab_size=50, vocab_out=3 * VOCAB_BLOCK + 5)
    h = torch.randn(4, 8, dtype=torch.float64)
    log_p = model.logits(h).log_softmax(-1)
    ids = torch.randint(0, model.config.vocab_out, (4, 3))
    found = model.centred_logits(h, ids) - model.logsumexp(h)[:, None]
    assert torch.allclose(found, log_p.gather(1, ids), atol=1e-12)


def damage(kind, folder):
    raw, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    if kind == "no config":
        (folder / "config.json").unlink()
    elif kind == "config is no JSON":
        (folder / "config.json").write_text("{")
    elif kind == "config without a key":
        del raw["n_head"]
    elif kind == "another architecture":
        raw["model_type"] = "bert"
    elif kind == "cross attention":
        raw["add_cross_attention"] = True
    elif kind == "unknown activation":
        raw["activation_function"] = "gelo"
    elif kind == "no weights":
        (folder / "model.safetensors").unlink()
    elif kind == "pickled weights only":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    elif kind == "missing tensor":
        del tensors["transformer.h.1.mlp.c_fc.weight"]
    elif kind == "wrong shape":
        tensors["transformer.h.0.attn.c_proj.weight"] = torch.zeros(16, 15)
    elif kind == "NaN":
        tensors["transformer.wpe.weight"][0, 0] = torch.nan
    elif kind == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    elif kind == "broken tokenizer":
        (folder / "tokenizer.json").write_text("{}")
    if (folder / "config.json").exists() and kind.startswith(("config without", "another", "cross", "unknown")):
        (folder / "config.json").write_text(json.dumps(raw))
    if kind in ("missing tensor", "wrong shape", "NaN"):
        save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors")
    if kind == "truncated weights":
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])


BAD = {
    "no config": "config.json: not found",
    "config is no JSON": "config.json: not readable as JSON",
    "config without a key": "key 'n_head' is missing",
    "another architecture": "architecture 'bert' is not supported; supported: gpt2",
    "cross attention": "add_cross_attention is True",
    "unknown activation": "Did you mean 'gelu'",
    "no weights": "no weights; expected model.safetensors",
    "pickled weights only": "pickled weights",
    "missing tensor": "tensor 'h.1.mlp.c_fc.weight' is missing",
    "wrong shape": "has shape (16, 15), not (16, 16)",
    "NaN": "contains NaN",
    "truncated weights": "not a readable safetensors file",
    "no tokenizer": "no tokenizer",
    "broken tokenizer": "not a readable tokenizer",
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_checkpoint_is_one_clear_line(tmp_path, kind):
    checkpoint(tmp_path)
    damage(kind, tmp_path)
    with pytest.raises(ModelError) as error:
        load_model(str(tmp_path), "cpu")
    assert BAD[kind] in str(error.value)
    assert "\n" not in str(error.value)
