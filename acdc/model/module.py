"""A module of transformers that is in memory, as a checkpoint."""

import copy
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from acdc.errors import ModelError, short
from acdc.model import huggingface
from acdc.model.checkpoint import FAMILIES, Checkpoint, check_config
from acdc.model.find import reading


@dataclass(frozen=True)
class ModuleCheckpoint(Checkpoint):
    """A checkpoint whose weights are those of a module."""

    module: Any = None

    def hash(self) -> str:
        """The SHA-256 of the names and bytes of the module's tensors, its first 16 hex digits."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.module.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()[:16]


def open_module(module: Any, tokenizer: Any, name: str | None = None) -> ModuleCheckpoint:
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
    return ModuleCheckpoint(name, where, config.model_type, config, sizes, of, (), read, module)
