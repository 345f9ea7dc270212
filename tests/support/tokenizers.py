"""The tokenizers of the bundled models, without their weights."""

from __future__ import annotations

from collections.abc import Sequence

from acdc.model.find import BUNDLED


class Fast:
    """The tokenizer of a bundled model."""

    def __init__(self, name: str) -> None:
        from tokenizers import Tokenizer

        self.name = name
        self.fast = Tokenizer.from_file(str(BUNDLED / name / "tokenizer.json"))
        self.vocab_size = self.fast.get_vocab_size()
        self.bos_id = self.fast.token_to_id("<bos>")
        self.unk_id = self.fast.token_to_id("<unk>")

    def encode(self, text: str) -> list[int]:
        return list(self.fast.encode(text, add_special_tokens=False).ids)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [self.fast.id_to_token(i) for i in ids]
