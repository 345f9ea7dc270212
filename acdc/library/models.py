"""Models: by name, and modules of transformers that are in memory."""

from pathlib import Path
from typing import Any

import torch

from acdc.errors import UserError
from acdc.library.arguments import checked
from acdc.model import load
from acdc.model.checkpoint import open_module
from acdc.model.load import Model
from acdc.registry import DTYPES, refusal


@checked
def load_model(
    model: str | Path | torch.nn.Module,
    tokenizer: object = None,
    *,
    name: str | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "float32",
) -> Model:
    """Load a model by name, or take a module of transformers.

    Args:
        model: a bundled model (`acdc models`), a local directory, a .gguf file or a Hugging Face id; or a module with a
            language-model head, of a family that acdc supports. Its weights are copied: it stays as it is, and changing
            it later doesn't change the model
        tokenizer: of the module; a fast one
        name: of the module, for files and pictures; by default that it was loaded by
        device: cpu, cuda, cuda:N, mps, or auto for the best available
        dtype: float32 or float64
    Raises:
        UserError: the model isn't found, or can't be read, represented or put on the device.
    """
    dtype = str(dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise UserError(f"--dtype: {refusal('dtype', dtype)}")
    of: Any = str(model)
    if isinstance(model, torch.nn.Module):
        of = open_module(model, tokenizer, name)
    elif tokenizer is not None or name is not None:
        raise UserError("load_model: tokenizer and name are for a module; a model that is loaded by name has its own")
    return load.load_model(of, str(device), dtype)
