"""The format of the bundled models: config.json has the fields of `ModelConfig`, tensors the names of its shapes."""

from dataclasses import fields
from typing import Any

from torch import Tensor

from acdc.errors import ModelError, unknown
from acdc.model.config import ModelConfig


def config(raw: dict[str, Any], where: str) -> ModelConfig:
    """The transformer's config from config.json."""
    known = {f.name for f in fields(ModelConfig)}
    values = {"vocab_out": raw.get("vocab_size"), **{k: v for k, v in raw.items() if k != "model_type"}}
    for key in values:
        if key not in known:
            raise ModelError(f"{where}: {unknown('key', key, known)}")
    values["windows"] = tuple(values.get("windows", ()))
    try:
        return ModelConfig(**values)
    except TypeError as error:
        raise ModelError(f"{where}: {error}") from None


def weights(raw: dict[str, Any], tensors: dict[str, Tensor], c: ModelConfig, where: str) -> dict[str, Tensor]:
    """The tensors, unchanged."""
    return tensors
