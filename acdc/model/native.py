"""Bundled models, which are read without transformers: `tiny` is a GPT-2 checkpoint, the others have a format of their
own: config.json has the fields of `ModelConfig`, and tensors have the names of its shapes."""

from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from acdc.errors import ModelError, unknown
from acdc.model.config import ModelConfig
from acdc.model.find import read_json, reading
from acdc.model.tokenizer import Tokenizer
from acdc.model.weights import Weights


def sizes(config: Any) -> ModelConfig:
    """The transformer's config from the keys of config.json."""
    known = {f.name for f in fields(ModelConfig)} - {"features"}
    values = {"vocab_out": config.vocab_size, **vars(config)}
    del values["model_type"]
    for key in values:
        if key not in known:
            raise ModelError(f"model config: {unknown('key', key, known)}")
    return ModelConfig(**values | {"windows": tuple(values.get("windows", ()))})


def read(config: Any, t: Weights) -> None:
    """Set the transformer's weights, which are the tensors."""
    t.out |= {name: t.take(name) for name in t.sizes.shapes()}
    t.finish()


def open_native(directory: Path, name: str, raw: dict[str, Any]) -> tuple[Any, Tokenizer, tuple[Path, ...], Any]:
    """The config, the tokenizer, the file with weights, and what reads it (`Checkpoint`)."""
    from safetensors.torch import load_file
    from tokenizers import Tokenizer as Backend

    file = directory / "tokenizer.json"
    with reading(file, "tokenizer"):
        backend = Backend.from_file(str(file))
        special = directory / "tokenizer_config.json"
        bos = read_json(special).get("bos_token") if special.is_file() else None
        tokens = [backend.token_to_id(token) if token else None for token in (bos, "<unk>")]
    weights = directory / "model.safetensors"

    def read_weights(dtype: torch.dtype) -> dict[str, Tensor]:
        with reading(weights, "safetensors file"):
            return {name: tensor.to(dtype) for name, tensor in load_file(weights).items()}

    return SimpleNamespace(**raw), Tokenizer(backend, name, *tokens), (weights,), read_weights
