"""Load a model onto a device. Only safetensors are read, which can't run code."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from acdc.errors import ModelError
from acdc.model import gpt2, gpt_neo, gpt_neox, llama, native
from acdc.model.checkpoint import IGNORED, config_errors, hash_files, take
from acdc.model.config import ModelConfig
from acdc.model.find import find_model, read_json
from acdc.model.tokenizer import Tokenizer
from acdc.model.transformer import Transformer
from acdc.task.tokenize import Split

FAMILIES: dict[str, ModuleType] = {
    "acdc": native,
    "gpt2": gpt2,
    "gpt_neo": gpt_neo,
    "gpt_neox": gpt_neox,
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), llama),
}
POST_NORM = ("exaone4", "gemma2", "gemma3", "gemma3_text", "glm4", "olmo2", "olmo3")
POST_NORM_REASON = ": it normalises the sum of a layer's heads before adding it, so no head has an output of its own"
REFUSED = {  # keys that change the computation and that no supported family implies
    "attn_logit_softcapping": "attention scores with a soft cap are",
    "final_logit_softcapping": "logits with a soft cap are",
    "quantization_config": "quantized weights are",
}
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Model:
    """A loaded model: `hash` is the SHA-256 of its safetensors files (first 16 hex digits)."""

    name: str
    family: str
    hash: str
    transformer: Transformer
    tokenizer: Tokenizer

    def check_fits(self, *splits: Split) -> None:
        """Raise ModelError if prompts are longer than the model's positions or use token ids that it doesn't have."""
        c = self.transformer.config
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


def load_model(name: str, device: str = "auto", dtype: str = "float32") -> Model:
    """Load a model by name. Raises ModelError if it can't be found, read or represented."""
    directory = find_model(name)
    raw, family, config = _read_config(directory)
    to = pick_device(device)
    if to.type == "mps" and dtype == "float64":
        raise ModelError("--dtype float64: MPS has no float64; use --device cpu or --dtype float32")
    tokenizer = Tokenizer(directory, name)
    files = _weight_files(directory)
    tensors = _read_tensors(files, DTYPES[dtype])
    with ThreadPoolExecutor(1) as beside:  # hashing and torch both release the GIL
        digest = beside.submit(hash_files, files)
        weights = FAMILIES[family].weights(raw, tensors, config, str(directory))
        transformer = Transformer(config, {k: v.to(to, DTYPES[dtype]) for k, v in weights.items()}, str(directory))
        return Model(name, family, digest.result(), transformer, tokenizer)


def load_tokenizer(name: str) -> tuple[ModelConfig, Tokenizer]:
    """Load a model's sizes and tokenizer without its weights. Raises ModelError as `load_model`."""
    directory = find_model(name)
    return _read_config(directory)[2], Tokenizer(directory, name)


def _read_config(directory: Path) -> tuple[dict[str, Any], str, ModelConfig]:
    """Read config.json: its content, the family and the sizes. Raises ModelError for a model that isn't supported."""
    where = str(directory / "config.json")
    raw = read_json(directory / "config.json")
    family = str(take(raw, where, "model_type"))
    if family not in FAMILIES:
        why = POST_NORM_REASON if family in POST_NORM else ""
        supported = ", ".join(f for f in FAMILIES if f != "acdc")
        raise ModelError(f"{where}: architecture {family!r} is not supported{why}; supported: {supported}")
    for key, what in REFUSED.items():
        if raw.get(key) is not None:
            raise ModelError(f"{where}: {key} is set, but {what} not supported; only checkpoints without are")
    with config_errors(where):
        return raw, family, FAMILIES[family].config(raw, where)


def pick_device(device: str) -> torch.device:
    """`auto` is CUDA, else MPS, else the CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"--device {device}: {str(error).splitlines()[0]}. Try auto, cpu, cuda or mps") from None


def _weight_files(directory: Path) -> list[Path]:
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        with config_errors(str(index)):
            names = sorted(set(take(read_json(index), str(index), "weight_map").values()))
            files = [directory / Path(n).name for n in names]
            for file in files:
                if not file.is_file():
                    raise ModelError(f"{index}: names {file}, which doesn't exist")
    else:
        whole = directory / "model.safetensors"
        files = [whole] if whole.is_file() else sorted(f for f in directory.glob("*.safetensors") if f.is_file())
    if files:
        return files
    if list(directory.glob("*.bin")):
        how = "load the model with transformers, and save_pretrained(...) writes safetensors"
        raise ModelError(f"{directory}: only pickled weights (*.bin), which can run code. Convert them: {how}")
    raise ModelError(f"{directory}: no weights; expected model.safetensors")


def _read_tensors(files: list[Path], dtype: torch.dtype) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            found = load_file(file)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file}: not a readable safetensors file ({error})") from None
        for name, tensor in found.items():
            if name in tensors:
                raise ModelError(f"{file}: tensor {name!r} is also in another file")
            if not tensor.is_floating_point() and not IGNORED.search(name):
                kind = str(tensor.dtype).removeprefix("torch.")
                raise ModelError(f"{file}: tensor {name!r} holds {kind}; weights should be floating-point numbers")
            tensors[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return tensors
