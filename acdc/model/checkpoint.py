"""A checkpoint, of files or of a module in memory: its config and tokenizer are read at once, its weights when they are
needed."""

import copy
import hashlib
import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from acdc.errors import ModelError, short
from acdc.graph.graph import MAX_NODES
from acdc.model import gemma, gguf, gpt2, gpt_neo, gpt_neox, huggingface, llama, native
from acdc.model.config import ModelConfig
from acdc.model.find import BUNDLED, find_model, read_json, reading
from acdc.model.hub import ADAPTER, TOKENIZERS
from acdc.model.tokenizer import Tokenizer
from acdc.task.tokenize import Split

FAMILIES: dict[str, ModuleType] = {
    "acdc": native,
    "gpt2": gpt2,
    "gpt_neo": gpt_neo,
    "gpt_neox": gpt_neox,
    **dict.fromkeys(("gemma2", "gemma3_text"), gemma),
    **dict.fromkeys(("granite", "llama", "ministral", "mistral", "olmo2", "olmo3", "phi3"), llama),
    **dict.fromkeys(("qwen2", "qwen3", "starcoder2"), llama),
}
UNSUPPORTED = {  # families that users may expect → why they are not supported
    "exaone4": "layers without a window don't rotate their queries and keys",
    "gemma3": "it reads images, too; its text model alone, gemma3_text, is supported",
    "glm4": "it rotates neighbouring dimensions of queries and keys",
}
REFUSED = {  # keys that change the computation and that no supported family implies, but those of CAPPED
    "attn_logit_softcapping": "attention scores with a soft cap are",
    "final_logit_softcapping": "logits with a soft cap are",
    "quantization_config": "quantized weights are",
    "transformers_weights": "weights in files of other names are",
    "use_bidirectional_attention": "attention to later tokens is",
}
CAPPED = {  # the caps that transformers computes for a family
    "gemma2": ("attn_logit_softcapping", "final_logit_softcapping"),
    "gemma3_text": ("final_logit_softcapping",),
}
# transformers makes lists and tensors of these lengths
COUNTS = ("n_layer", "num_layers", "num_hidden_layers", "num_labels", "head_dim")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint without its weights; `config` is that of transformers, `files` or a module in memory hold them."""

    name: str
    path: Path
    family: str
    config: Any
    sizes: ModelConfig
    tokenizer: Tokenizer
    files: tuple[Path, ...]
    read: Callable[[torch.dtype], Any]  # the weights: transformers' module, or the tensors of a bundled model
    module: Any = None

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
        """The SHA-256 of the files with weights, or of a module's tensors with their names, its first 16 hex digits."""
        digest = hashlib.sha256()
        tensors = self.module.state_dict() if self.module is not None else {}
        for name, tensor in sorted(tensors.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return hash_files(self.files, digest)


def hash_files(paths: Iterable[Path], digest: Any = None) -> str:
    """The first 16 hex digits of the SHA-256 of files, after what `digest` has."""
    digest = digest or hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
    return str(digest.hexdigest()[:16])


def open_checkpoint(name: str) -> Checkpoint:
    """Find a checkpoint and read config and tokenizer; raise ModelError if that fails, or no family represents it."""
    path = find_model(name)
    return _adapted(name, path) if (path / ADAPTER[0]).exists() else _opened(name, path)


def _opened(name: str, path: Path) -> Checkpoint:
    bundled = False
    if path.is_file():
        config, tokenizer, files, read = gguf.open_gguf(path, name)
    else:
        with reading(path, "directory"):
            for entry in path.iterdir():  # libraries would wait for a pipe for ever
                if entry.exists() and not (entry.is_file() or entry.is_dir()):
                    raise ModelError(f"{entry}: can't be read (not a regular file)")
        raw = read_json(path / "config.json")
        check_config(raw, path / "config.json")
        bundled = path.parent == BUNDLED or raw["model_type"] == "acdc"
        open_directory = native.open_native if bundled else huggingface.open_directory
        config, tokenizer, files, read = open_directory(path, name, raw)
    with reading(path, "config"):
        sizes = FAMILIES[config.model_type].sizes(config)
    if path.is_dir() and not bundled:
        huggingface.check_size(path, config)
    return Checkpoint(name, path, config.model_type, config, sizes, tokenizer, files, read)


def _adapted(name: str, path: Path) -> Checkpoint:
    """A LoRA adapter, merged with its base when the weights are read; its own tokenizer replaces the base's."""
    where = path / ADAPTER[0]
    weights = path / ADAPTER[1]
    if importlib.util.find_spec("peft") is None:
        raise ModelError(f"{path}: a LoRA adapter, which needs peft: pip install 'acdc-circuits[lora]'")
    raw = read_json(where)
    base = raw.get("base_model_name_or_path")
    if raw.get("peft_type") != "LORA" or not isinstance(base, str) or not weights.is_file():
        needed = f"peft_type LORA, a base_model_name_or_path, and {weights.name} beside it"
        raise ModelError(f"{where}: not a LoRA adapter that can be read; it needs {needed}")
    try:
        found = find_model(f"{base}@{raw['revision']}" if raw.get("revision") else base)
    except ModelError as error:
        raise ModelError(f"{where}: base_model_name_or_path: {str(error).removeprefix('--model ')}") from None
    if (found / ADAPTER[0]).exists() or found.parent == BUNDLED:
        why = "is an adapter itself, or bundled; name another model"
        raise ModelError(f"{where}: base_model_name_or_path: {base} {why}")
    of = _opened(name, found)
    if any((path / file).is_file() for file in TOKENIZERS):
        of = replace(of, tokenizer=huggingface.read_tokenizer(path, name))
    read = partial(huggingface.adapted, of.read, path, raw)
    return replace(of, path=path, files=(*of.files, weights, where), read=read)


def check_config(raw: dict[str, Any], where: Path) -> None:
    """Raise ModelError for a config.json that no family represents, or that transformers would read without end."""
    family = raw.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        why = next((f": {reason}" for other, reason in UNSUPPORTED.items() if other == family), "")
        supported = ", ".join(sorted(f for f in FAMILIES if f != "acdc"))
        raise ModelError(f"{where}: model_type {family!r} is not supported{why}; supported: {supported}")
    for key, what in REFUSED.items():
        if raw.get(key) not in (None, False) and key not in CAPPED.get(family, ()):
            raise ModelError(f"{where}: {key} is set, but {what} not supported; only checkpoints without are")
    with reading(where, "config"):
        lengths = {key: raw.get(key) or 0 for key in COUNTS}
        lengths["attention_types"] = sum(max(len(kinds), 1) * n for kinds, n in raw.get("attention_types") or ())
        for key, length in lengths.items():
            if length > MAX_NODES:
                raise ModelError(f"{where}: {key} describes {length:,}; no model has so many")


def open_module(module: Any, tokenizer: Any, name: str | None = None) -> Checkpoint:
    """The checkpoint of a module and its tokenizer; raise ModelError if no family represents it."""
    config: Any = getattr(module, "config", None)
    name = name or getattr(config, "name_or_path", "") or type(module).__name__
    if hasattr(module, "cfg"):
        raise ModelError(f"{type(module).__name__}: is TransformerLens's; give a module as transformers loads it")
    if not hasattr(config, "model_type"):
        raise ModelError(f"{type(module).__name__}: has no config with a model_type, as modules of transformers have")
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise ModelError(f"{name}: give its tokenizer, too, a fast one of transformers, got {short(tokenizer)}")
    where = Path(name)
    check_config({**config.to_dict(), "model_type": config.model_type}, where)
    if module.get_output_embeddings() is None:
        headless = f"{type(module).__name__} has no language-model head"
        raise ModelError(f"{name}: {headless}; load it with AutoModelForCausalLM")
    with reading(where, "config"):
        sizes = FAMILIES[config.model_type].sizes(config)

    def read(dtype: torch.dtype) -> Any:
        with huggingface.transformers(where, "module"):
            twin = copy.deepcopy(module).to("cpu", dtype)
            if hasattr(twin, "set_attn_implementation"):
                twin.set_attn_implementation("eager")
            return twin.eval()

    of = huggingface.wrapped(copy.deepcopy(tokenizer), name)
    return Checkpoint(name, where, config.model_type, config, sizes, of, (), read, module)
