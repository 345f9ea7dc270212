"""Text to token ids and back, with a checkpoint's tokenizer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from acdc.errors import ModelError

BOS = ("<|endoftext|>", "<s>", "<|begin_of_text|>", "<bos>", "<|bos|>", "BOS")


class Tokenizer:
    """A checkpoint's tokenizer, from tokenizer.json or GPT-2's vocab.json and merges.txt."""

    def __init__(self, directory: Path, name: str) -> None:
        self.name = name
        self._fast = _read(directory)
        self.vocab_size: int = self._fast.get_vocab_size()
        self.bos_id = next((i for t in BOS if (i := self._fast.token_to_id(t)) is not None), None)
        self.unk_id = self._fast.token_to_id("<unk>")

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens."""
        ids: list[int] = self._fast.encode(text, add_special_tokens=False).ids
        return ids

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Each id as readable text."""
        return [self._fast.decode([i], skip_special_tokens=False) for i in ids]


def _read(directory: Path) -> Any:
    from tokenizers import ByteLevelBPETokenizer
    from tokenizers import Tokenizer as AnyTokenizer

    whole, vocab, merges = (directory / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    try:
        if whole.is_file():
            tokenizer = AnyTokenizer.from_file(str(whole))
            tokenizer.no_padding()
            tokenizer.no_truncation()
            return tokenizer
        if vocab.is_file() and merges.is_file():
            return ByteLevelBPETokenizer.from_file(str(vocab), str(merges))
    except BaseException as error:  # for a bad file the library raises Exception, or a panic, which is a BaseException
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ModelError(f"{whole if whole.is_file() else vocab}: not a readable tokenizer ({error})") from None
    needed = "tokenizer.json, or vocab.json and merges.txt, beside the weights"
    raise ModelError(f"{directory}: no tokenizer; it needs {needed}")
