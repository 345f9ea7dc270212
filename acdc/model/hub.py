"""Models of the Hugging Face hub: from its cache on this machine, else downloaded."""

import logging
from collections.abc import Iterable
from pathlib import Path

from acdc.errors import ModelError, unknown
from acdc.model.find import INDEX, WEIGHTS, describe_model, read_json

FILES = ("config.json", "model*.safetensors", INDEX, "adapter_*", "*token*.json", "tokenizer.model", "vocab.json")
FILES += ("merges.txt",)
NEEDED = (("config.json", "adapter_config.json"), (WEIGHTS, INDEX, "adapter_model.safetensors"))


def download(name: str, others: Iterable[str]) -> Path:
    """Return the directory of a model, `org/model` or `org/model@revision`; what the cache lacks is downloaded.

    Raises ModelError if it can't be had; `others` are names that would do.
    """
    from huggingface_hub import errors, snapshot_download

    repository, _, revision = name.partition("@")
    which = {"repo_id": repository, "revision": revision or None, "allow_patterns": list(FILES)}
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        cached = Path(snapshot_download(**which, local_files_only=True))
        if not (lacking := missing(cached)):
            return cached
        here = f"the Hugging Face cache holds only a part of it (not {lacking})"
    except Exception:  # nothing is cached: the call below says what is wrong
        here = "not bundled, no local directory, not in the Hugging Face cache"
    try:
        found = Path(snapshot_download(**which, etag_timeout=5))
        if not (lacking := missing(found)):
            return found
        why = f"{lacking} is not in the repository"
    except errors.GatedRepoError:
        page = f"its page on the hub ({repository})"
        why = f"the repository is gated: ask for access on {page}, then run `hf auth login`"
    except errors.RepositoryNotFoundError:
        why = f"the hub has no such model, or it is private: then run `hf auth login`. {unknown('model', name, others)}"
    except errors.RevisionNotFoundError:
        why = f"the repository has no revision {revision!r}"
    except errors.HFValidationError:
        why = f"not a name that the hub could have. {unknown('model', name, others)}"
    except Exception as error:
        failed = f"{here}, and the hub can't be reached ({type(error).__name__})"
        why = f"{failed}. Download it elsewhere and give its directory, or run a bundled model: "
        why += unknown("model", name, others)
    raise ModelError(f"--model {name}: {why}")


def missing(directory: Path) -> str | None:
    """The first file that a checkpoint's directory lacks, None if it is whole."""
    for choices in NEEDED:
        if not any((directory / file).exists() for file in choices):
            return choices[0]
    if not (directory / WEIGHTS).exists() and (directory / INDEX).exists():
        shards = read_json(directory / INDEX).get("weight_map")
        names = sorted({str(file) for file in shards.values()}) if isinstance(shards, dict) else []
        return next((file for file in names if not (directory / file).exists()), None)
    return None


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
