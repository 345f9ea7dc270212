"""Tokens in context: answers and pieces get the tokens that they have behind other text, whatever a tokenizer puts in
front of a text that stands alone. What is expected comes from transformers, which encodes prompt and answer as one."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import pytest

from acdc.errors import TaskError
from acdc.task.draw import draw
from acdc.task.load import load_task, task_names
from acdc.task.tokenize import Encoder, make_data, tokenize
from tests.support.assets import gpt2_files
from tests.support.tokenizers import Fast, llama_like, llama_parts, words_of

ANSWERED = [
    "capital-country",
    "causal-because",
    "causal-because-nonsense",
    "docstring",
    "gender-bias",
    "gendered-pronoun",
    "greater-than",
    "greater-than-digits",
    "hypernymy",
    "ioi",
    "subject-verb-agreement",
]


class Whole:
    """What transformers makes of a prompt and an answer as one text."""

    def __init__(self, fast: Any) -> None:
        self.fast = fast

    def ids(self, text: str) -> list[int]:
        return list(self.fast(text, add_special_tokens=False).input_ids)

    def answer(self, prompt: str, answer: str) -> int:
        *before, last = self.ids(prompt + answer)
        assert before == self.ids(prompt)
        return last


@pytest.mark.parametrize("space", ["prepend", "first", "always", "LlamaTokenizer"])
@pytest.mark.parametrize("name", ANSWERED)
def test_answers_are_the_tokens_that_follow_the_prompt(name: str, space: str) -> None:
    import transformers

    if space == "LlamaTokenizer":
        vocabulary, merges = llama_parts(words_of(name))
        llama = transformers.LlamaTokenizer(vocab=vocabulary, merges=merges)
        tokenizer = Fast("llama", llama.backend_tokenizer)
        whole = Whole(llama)
    else:
        tokenizer = llama_like(words_of(name), space)
        whole = Whole(transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.fast))
    task = load_task(name)
    encoder = Encoder(task, tokenizer)
    examples = draw(task, encoder.unfit, Random(0), 8, 1)
    split = tokenize(task, encoder, examples, 0)
    bos = [tokenizer.bos_id] if task.data.bos else []
    for example, clean, correct, wrong in zip(examples, split.clean, split.correct, split.wrong, strict=True):
        assert list(clean) == bos + whole.ids(example.clean)
        for ids, texts in ((correct, example.correct), (wrong, example.wrong)):
            assert [i for i in ids if i >= 0] == [whole.answer(example.clean, text) for text in texts]


def test_induction_scores_what_can_be_induced_behind_a_first_space() -> None:
    split = make_data(load_task("induction"), llama_like(words_of("induction"), "prepend"), 10, 0).discovery
    assert split.clean.shape[1] == 21  # the words, and the space before the first
    for (example, position), correct in zip(split.rows, split.correct, strict=True):
        earlier = split.clean[example, :position].tolist()
        assert split.clean[example, earlier.index(split.clean[example, position]) + 1] == correct[0]


def test_a_piece_that_begins_the_prompt_has_its_tokens_there() -> None:
    """ "Emily" is one token at the beginning, with the space that the tokenizer adds, and several elsewhere."""
    task = load_task("causal-because")
    vocabulary, merges = llama_parts(words_of("causal-because"))
    spaced = [(a, b) for a, b in merges if a.startswith("▁")]
    from tokenizers import Tokenizer, models, normalizers

    fast = Tokenizer(models.BPE(vocabulary, spaced, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    fast.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    encoder = Encoder(task, Fast("spaced", fast))
    assert encoder.show(encoder.encode("Emily")) == "'▁Emily'"
    assert len(encoder.continuation("Emily")) == 5
    assert make_data(task, encoder.tokenizer, 5, 0).discovery.clean.shape[0] == 5


@pytest.mark.parametrize("name", ["tiny", "gpt2"])
def test_other_tokenizers_make_the_same_of_a_text_alone(name: str) -> None:
    from tokenizers import ByteLevelBPETokenizer

    fast = None
    if name == "gpt2":
        folder = gpt2_files()
        fast = ByteLevelBPETokenizer.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    encoder = Encoder(load_task("ioi"), Fast(name, fast))
    words = {word for task in task_names() for word in words_of(task)} | {f"{n:02}" for n in range(100)}
    for text in [*words, *(" " + word for word in words), "", " ", "\n", "\n\n", "  a", "'s", '"""', "\u2581", "é"]:
        assert encoder.continuation(text) == encoder.encode(text), text


class Strange:
    """A tokenizer of single characters, that is asked for texts it can't encode, or changes what follows a line."""

    name = "strange"
    vocab_size = 1000
    bos_id: int | None = None

    def __init__(self, of_line: Sequence[int] | None) -> None:
        self.of_line = of_line

    def encode(self, text: str) -> list[int]:
        if "\n" in text and self.of_line is None:
            raise KeyError("\n")
        return [*(self.of_line or ()), *map(ord, text[1:])] if "\n" in text else [*map(ord, text)]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        return [(i, i + 1) for i in range(len(text))]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return list(map(chr, ids))


@pytest.mark.parametrize("of_line", [None, (), (7,), (7, 8)], ids=["no such token", "dropped", "one token", "two"])
def test_whatever_a_tokenizer_makes_of_a_line_break(of_line: Sequence[int] | None) -> None:
    encoder = Encoder(load_task("ioi"), Strange(of_line))
    assert encoder.continuation("ab") == (ord("a"), ord("b"))


# ---------------------------------------------------------------- BOS


@pytest.mark.parametrize("name", [name for name in task_names() if load_task(name).data.bos])
def test_bos_of_a_tokenizer_without_one_is_refused(name: str) -> None:
    with pytest.raises(TaskError) as error:
        tokenizer = llama_like(words_of(name), "first")
        tokenizer.bos_id = None
        make_data(load_task(name), tokenizer, 5, 0)
    message = str(error.value)
    assert message.startswith(f"{name}: data.bos: is true, but tokenizer llama-like (first) has no BOS token")
    assert f"bos: false; for a shipped task, in a copy mine.yaml: {{include: {name}," in message
    assert "\n" not in message


def test_the_copy_that_the_message_proposes_runs(tmp_path) -> None:
    (tmp_path / "mine.yaml").write_text("{include: gender-bias, data: {bos: false}}")
    tokenizer = llama_like(words_of("gender-bias"), "first")
    tokenizer.bos_id = None
    assert make_data(load_task(str(tmp_path / "mine.yaml")), tokenizer, 5, 0).discovery.clean.shape[0] == 5
