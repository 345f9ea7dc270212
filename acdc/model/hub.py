"""Models of the Hugging Face hub: from its cache on this machine, else downloaded."""

import logging
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from acdc.errors import ModelError, unknown
from acdc.io import files

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")  # one of them is needed
OF_TOKENIZERS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt")
SMALL = [CONFIG, ADAPTER[0], INDEX, *TOKENIZERS, *OF_TOKENIZERS]
MAX_JSON_BYTES = 10_000_000  # limit on config.json and the index of weights


def download(name: str, known: Iterable[str]) -> Path:
    """Return the directory of a model, `org/model` or `org/model@revision`; what the cache lacks is downloaded.

    Raises ModelError if it can't be had; `known` are names that need no hub.
    """
    from huggingface_hub import HfApi, errors, snapshot_download, try_to_load_from_cache

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    repository, at, revision = name.partition("@")
    which: dict[str, Any] = {"repo_id": repository, "revision": revision if at else None}
    near = "" if "/" in name else f". {unknown('model', name, known)}"
    here = "it is neither a local directory nor in the Hugging Face cache"
    try:
        if at and not revision:
            raise errors.HFValidationError
        cached = [try_to_load_from_cache(filename=file, **which) for file in SMALL]
        if found := next((Path(file).parent for file in cached if isinstance(file, str)), None):
            if not (lacking := missing(found)):
                return found
            here = f"the Hugging Face cache has only a part of it, without {lacking}"
        names = {file.rfilename for file in HfApi().model_info(**which, timeout=10).siblings or ()}
        if not (lacking := _lacking(names)):
            snapshot_download(**which, allow_patterns=SMALL)
            weights = [WEIGHTS] if WEIGHTS in names else ["model-*.safetensors", ADAPTER[1]]  # last: see `missing`
            return Path(snapshot_download(**which, allow_patterns=weights))
        why = f"the repository has no {lacking}"
    except errors.GatedRepoError:
        why = f"the repository is gated: ask for access on the hub's page of {repository}, then run `hf auth login`"
    except errors.RepositoryNotFoundError:
        why = f"the hub has no such model, or it is private: then run `hf auth login`{near}"
    except errors.RevisionNotFoundError:
        why = f"the repository has no branch, tag or commit {revision!r}"
    except (errors.HFValidationError, UnicodeError):
        why = f"not a name of the hub, as organisation/model or organisation/model@revision{near}"
    except Exception as error:
        cause = isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__
        said = " ".join(str(cause or error).split())[:300].rstrip(".")
        why = f"{here}, and the hub doesn't give it ({said}). Give the directory of a copy, or a bundled model{near}"
    raise ModelError(f"--model {name}: {why}")


def missing(directory: Path) -> str | None:
    """The first needed file that a directory lacks, None if a checkpoint is whole: weights are downloaded last."""
    names = {file.name for file in directory.iterdir() if file.exists()}  # a link may lead nowhere
    whole = WEIGHTS in names or INDEX not in names
    shards = {} if whole else files.read_json(directory / INDEX, MAX_JSON_BYTES).get("weight_map")
    needed = sorted(map(str, shards.values())) if isinstance(shards, dict) else ()
    return _lacking(names) or next((name for name in needed if name not in names), None)


def _lacking(names: Collection[str]) -> str | None:
    groups = [[name] for name in ADAPTER] if ADAPTER[0] in names else [[CONFIG], [WEIGHTS, INDEX], TOKENIZERS]
    return next((group[0] for group in groups if not any(name in names for name in group)), None)


def cached_models() -> dict[str, Path]:
    """The directories of the models in the Hugging Face cache, by name, with the revision unless it is main."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return {}
    out: dict[str, Path] = {}
    for repo, revision in ((r, revision) for r in repos for revision in r.revisions if r.repo_type == "model"):
        names = {repo.repo_id if ref == "main" else f"{repo.repo_id}@{ref}" for ref in revision.refs}
        if (revision.snapshot_path / CONFIG).is_file():
            out |= dict.fromkeys(names or {f"{repo.repo_id}@{revision.commit_hash}"}, revision.snapshot_path)
    return dict(sorted(out.items()))
