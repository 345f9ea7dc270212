"""A checkpoint: its config and tokenizer are read at once, its weights when they are needed."""

import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from acdc.errors import ModelError
from acdc.graph.graph import MAX_NODES
from acdc.model import gguf, gpt2, gpt_neo, gpt_neox, huggingface, llama, native
from acdc.model.config import ModelConfig
from acdc.model.find import BUNDLED, find_model, read_json, reading
from acdc.model.tokenizer import Tokenizer
from acdc.task.tokenize import Split

FAMILIES: dict[str, ModuleType] = {
    "acdc": native,
    "gpt2": gpt2,
    "gpt_neo": gpt_neo,
    "gpt_neox": gpt_neox,
    **dict.fromkeys(("llama", "ministral", "mistral", "qwen2", "qwen3"), llama),
}
POST_NORM = ("exaone4", "gemma2", "gemma3", "gemma3_text", "glm4", "olmo2", "olmo3")
POST_NORM_REASON = ": it normalises the sum of a layer's heads before adding it, so no head has an output of its own"
REFUSED = {  # keys that change the computation and that no supported family implies
    "attn_logit_softcapping": "attention scores with a soft cap are",
    "final_logit_softcapping": "logits with a soft cap are",
    "quantization_config": "quantized weights are",
}
LAYERS = ("n_layer", "num_layers", "num_hidden_layers")
Read = Callable[[torch.dtype], Any]  # loads the weights: transformers' module, or the tensors of a bundled model


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint without its weights; `config` is that of transformers, `files` are those that hold weights."""

    name: str
    path: Path
    family: str
    config: Any
    sizes: ModelConfig
    tokenizer: Tokenizer
    files: tuple[Path, ...]
    read: Read

    def check_fits(self, *splits: Split) -> None:
        """Raise ModelError if prompts are longer than the model's positions or use token ids that it doesn't have."""
        c = self.sizes
        for split in splits:
            n = split.clean.shape[1]
            if n > c.n_positions:
                raise ModelError(f"--model {self.name}: has {c.n_positions} positions, but the prompts have {n} tokens")
            embedded = split.clean, split.corrupted
            predicted = split.correct, split.wrong
            for both, size, verb in ((embedded, c.vocab_size, "embeds"), (predicted, c.vocab_out, "predicts")):
                token = max(int(ids.max(initial=0)) for ids in both)
                if token >= size:
                    piece = self.tokenizer.pieces([token])[0]
                    found = f"the prompts have token id {token} ({piece!r}), but the model {verb} {size} ids only"
                    raise ModelError(f"--model {self.name}: {found}; its tokenizer belongs to another model")

    def hash(self) -> str:
        """The SHA-256 of the files with weights, its first 16 hex digits."""
        digest = hashlib.sha256()
        for path in self.files:
            with path.open("rb") as file:
                while chunk := file.read(1 << 22):
                    digest.update(chunk)
        return digest.hexdigest()[:16]


def open_checkpoint(name: str) -> Checkpoint:
    """Find a checkpoint and read its config and tokenizer; raise ModelError if it can't be found, read or represented."""
    path = find_model(name)
    if (path / "adapter_config.json").exists():
        return _adapted(name, path)
    if path.is_file():
        config, tokenizer, files, read = gguf.open_gguf(path, name)
    else:
        raw = read_json(path / "config.json")
        _check(raw, path / "config.json")
        bundled = path.parent == BUNDLED or raw["model_type"] == "acdc"
        open_directory = native.open_native if bundled else huggingface.open_directory
        config, tokenizer, files, read = open_directory(path, name, raw)
    with reading(path, "config"):
        sizes = FAMILIES[config.model_type].sizes(config)
    return Checkpoint(name, path, config.model_type, config, sizes, tokenizer, files, read)


def _adapted(name: str, path: Path) -> Checkpoint:
    """A LoRA adapter, merged with its base when the weights are read."""
    raw = read_json(path / "adapter_config.json")
    if importlib.util.find_spec("peft") is None:
        raise ModelError(f"{path}: a LoRA adapter; merging it with its base needs peft: pip install peft")
    weights = path / "adapter_model.safetensors"
    if raw.get("peft_type") != "LORA" or not weights.is_file():
        raise ModelError(f"{path}: only LoRA adapters with {weights.name} are supported")
    base = str(raw.get("base_model_name_or_path"))
    if (find_model(base) / "adapter_config.json").exists():
        raise ModelError(f"{path}: its base {base} is an adapter, too; merge that first")
    of = open_checkpoint(base)
    if of.family == "acdc" or of.path.parent == BUNDLED:
        raise ModelError(f"{path}: its base {base} is not a checkpoint of transformers")
    read = partial(huggingface.merged, of.read, path)
    return replace(of, name=name, path=path, files=(*of.files, weights), read=read)


def _check(raw: dict[str, Any], where: Path) -> None:
    """Raise ModelError for a config.json that no family represents, or that transformers would read without end."""
    family = raw.get("model_type")
    if family not in FAMILIES:
        why = POST_NORM_REASON if family in POST_NORM else ""
        supported = ", ".join(f for f in FAMILIES if f != "acdc")
        raise ModelError(f"{where}: model_type {family!r} is not supported{why}; supported: {supported}")
    for key, what in REFUSED.items():
        if raw.get(key) is not None:
            raise ModelError(f"{where}: {key} is set, but {what} not supported; only checkpoints without are")
    with reading(where, "config"):
        layers = [raw.get(key) or 0 for key in LAYERS]
        layers += [len(kinds) * times for kinds, times in raw.get("attention_types") or ()]
        if max(layers) > MAX_NODES:
            raise ModelError(f"{where}: {max(layers):,} layers; no model has so many")
