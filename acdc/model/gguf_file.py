"""A GGUF file: its keys and tensors, and what is refused of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from acdc.errors import ModelError

SUPPORTED = ("gpt2", "llama", "qwen2", "qwen3")
"""Architectures that can be converted; each becomes the `model_type` of the same name. A GGUF calls Mistral llama."""

_REFUSED = (  # keys, after the architecture's prefix, that change the computation and that the config can't express
    "attention.scale",
    "attention.clamp_kqv",
    "attention.sliding_window",
    "attn_logit_softcapping",
    "embedding_scale",
    "expert_count",
    "final_logit_softcapping",
    "logit_scale",
    "residual_scale",
)


@contextmanager
def broken(path: Path) -> Iterator[None]:
    """Raise any error inside as a ModelError about the file: the gguf library checks little."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        what = " ".join(str(error).split()) or "no detail"
        raise ModelError(f"{path}: can't be read as GGUF, perhaps truncated ({type(error).__name__}: {what})") from None


@dataclass(frozen=True)
class GgufFile:
    """Keys and tensors of a file, by name."""

    path: Path
    keys: dict[str, Any]  # gguf.ReaderField by name
    tensors: dict[str, Any]  # gguf.ReaderTensor by name

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key."""
        return self.keys[key].contents() if key in self.keys else default

    def own(self, key: str, default: Any = None) -> Any:
        """A key of the architecture, required if there is no default."""
        value = self.get(f"{self.architecture}.{key}", default)
        if value is None:
            raise self.refuse(f"{self.architecture}.{key} is missing")
        if isinstance(value, list):
            raise self.refuse(f"{self.architecture}.{key} differs between layers, which is not supported")
        return value

    @property
    def architecture(self) -> str:
        """The value of general.architecture."""
        return str(self.get("general.architecture"))

    def check(self) -> None:
        """Raise ModelError for an architecture or a setting that can't be represented."""
        if self.architecture not in SUPPORTED:
            supported = ", ".join(SUPPORTED)
            raise self.refuse(f"architecture {self.architecture!r} is not supported as a GGUF; supported: {supported}")
        if int(self.get("split.count", 1)) > 1:
            raise self.refuse("one part of a split model; merge the parts into one file first")
        for key in _REFUSED:
            if self.get(f"{self.architecture}.{key}"):
                raise self.refuse(f"{self.architecture}.{key} is set, which is not supported")

    def refuse(self, why: str) -> ModelError:
        """The error of this file."""
        return ModelError(f"{self.path}: {why}")


def open_gguf(path: Path) -> GgufFile:
    """Read a file; ModelError if the gguf library is missing or can't read it."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        needed = f"reading it needs the gguf library ({error}); pip install 'acdc-circuits[gguf]'"
        raise ModelError(f"{path}: {needed}") from None

    class Reader(GGUFReader):
        """A reader that notices truncated files; the library itself would read on."""

        def _get(self, offset: int, dtype: Any, count: int = 1, *more: Any, **order: Any) -> Any:
            found = super()._get(offset, dtype, count, *more, **order)
            if len(found) < int(count):
                raise EOFError(f"{count} values of {np.dtype(dtype)} at byte {offset} are not all there")
            return found

    with broken(path):
        reader: Any = Reader(path)
        return GgufFile(path, dict(reader.fields), {t.name: t for t in reader.tensors})
