"""The tokenizers of the bundled models, without their weights, one like Llama 2's, and simple ones of patterns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from acdc.model.find import BUNDLED
from acdc.task.load import shipped_dir


class Fast:
    """The tokenizer of a bundled model, or another one of the library `tokenizers`."""

    def __init__(self, name: str, fast: Any = None) -> None:
        from tokenizers import Tokenizer

        self.name = name
        self.fast = fast or Tokenizer.from_file(str(BUNDLED / name / "tokenizer.json"))
        self.vocab_size = self.fast.get_vocab_size()
        ids = [self.fast.token_to_id(token) for token in ("<bos>", "<s>")]
        self.bos_id = next((i for i in ids if i is not None), None)
        self.unk_id = self.fast.token_to_id("<unk>")

    def encode(self, text: str) -> list[int]:
        return list(self.fast.encode(text, add_special_tokens=False).ids)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        return list(self.fast.encode(text, add_special_tokens=False).offsets)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [self.fast.id_to_token(i) for i in ids]


def llama_parts(words: Iterable[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return vocabulary and merges with one token per word: special tokens, bytes, then characters and words, with and
    without the space before them. A space wins: merges with one come first."""
    whole = sorted(set(words))
    texts = ["▁" + word for word in whole] + whole
    merges = list(dict.fromkeys((text[:i], text[i]) for text in texts for i in range(1, len(text))))
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += sorted({"▁", *".,'\"():_-0123456789", *(letter for word in whole for letter in word)})
    tokens += [first + last for first, last in merges]
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}, merges


def llama_like(words: Iterable[str], space: str) -> Fast:
    """Return a tokenizer that puts a space before every text, as Llama 2's and Mistral's do.

    Args:
        space: `prepend`, by the normalizer of Llama 2's tokenizer.json; `first` or `always`, by Metaspace
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    vocabulary, merges = llama_parts(words)
    fast = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if space == "prepend":
        fast.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        fast.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=space, split=False)
    return Fast(f"llama-like ({space})", fast)


class Pieces:
    """A tokenizer that learns its vocabulary: pieces are words with the space before them, or single digits."""

    name = "pieces"
    bos_id: int | None = 0
    pattern = re.compile(r" ?[A-Za-z]+| ?\d\d|\s|[^\w\s]+|\d")

    def __init__(self, vocab_size: int = 10_000) -> None:
        self.vocab_size, self.known = vocab_size, {"<bos>": 0}

    def encode(self, text: str) -> list[int]:
        return [self.known.setdefault(piece, len(self.known)) for piece in self.pattern.findall(text)]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        return [found.span() for found in self.pattern.finditer(text)]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [list(self.known)[i] for i in ids]


class Digits(Pieces):
    """Splits numbers into digits, as Llama's tokenizers do."""

    name = "digits"
    pattern = re.compile(r" ?[A-Za-z]+|\d|\s|[^\w\s]+")


def words_of(name: str) -> list[str]:
    """All words in a task's file; years split into pairs of digits where the task needs that."""
    included = ["causal-because"] if name == "causal-because-nonsense" else []
    texts = [(shipped_dir("tasks") / f"{file}.yaml").read_text() for file in [name, *included]]
    words = re.findall("[A-Za-z]+", " ".join(texts))
    return words + [f"{n:02}" for n in range(100)] if name == "greater-than" else words
