"""Text to token ids and back, with a checkpoint's tokenizer."""

from collections.abc import Sequence
from typing import Any

from acdc.errors import ModelError


class Tokenizer:
    """A checkpoint's tokenizer: `backend` is of the library tokenizers; ids are None where there is no such token."""

    def __init__(self, backend: Any, name: str, bos_id: int | None, unk_id: int | None) -> None:
        for token in (bos_id, unk_id):
            if token is not None and backend.id_to_token(token) is None:
                raise ModelError(f"{name}: the tokenizer's special token {token} is not in its vocabulary")
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        self.name = name
        self.vocab_size: int = backend.get_vocab_size()
        self.bos_id = bos_id
        self.unk_id = unk_id

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Where each of these tokens begins and ends in the text, in characters."""
        found: list[tuple[int, int]] = self._backend.encode(text, add_special_tokens=False).offsets
        return found

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Each id as readable text."""
        return [self._backend.decode([i], skip_special_tokens=False) for i in ids]
