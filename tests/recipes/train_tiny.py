"""Recipe of the bundled model `tiny`: a small GPT-2 with its own tokenizer, trained on the language tasks.

    pip install 'acdc-circuits[recipes]'
    python -m tests.recipes.train_tiny --out acdc/bundled/tiny

1. vocabulary  every token that the six tasks can produce; tokens split where GPT-2's do
2. data        prompts of the tasks, and of variants that close shortcuts (the other order of names, other argument
               lists), make a start easy (the gist of IOI in three tokens) or show the corrupted prompts
3. train       loss of the answers (soft targets: uniform over the correct ones) and, a tenth of it, of all tokens,
               until all goals hold on the held-out halves of the tasks
4. write       Hugging Face layout, and a model card with what was measured

Seeded and single-threaded: the same versions on the same kind of machine give the same weights.
The prompts that the tasks draw by default are in no training set, nor is any IOI prompt with one of a fifth of
the name pairs.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer
from transformers import GPT2Config, GPT2LMHeadModel

from acdc.io.yaml_file import merge
from acdc.task.draw import pools
from acdc.task.load import checked, find, load_task, read_included
from acdc.task.schema import Task
from acdc.task.template import render
from acdc.task.tokenize import Data, Split, make_data

TASKS = ("greater-than", "ioi", "induction", "docstring", "gendered-pronoun", "subject-verb-agreement")
GOALS = {  # probability of the right answers (minus that of the wrong ones) on the held-out halves
    "greater-than": 0.95,
    "ioi": 0.98,
    "ioi, unseen pairs": 0.98,
    "induction": 0.96,
    "docstring": 0.93,
    "gendered-pronoun": 0.98,
    "subject-verb-agreement": 0.98,
}
TYPICAL_ROWS = 64  # scale of the loss: prompts that count as one
SPLIT = r"'[a-z]+| ?[A-Za-z]+| ?\d\d|\n+| ?[^\sA-Za-z\d]+|\s"  # where GPT-2 splits these texts


# ---------------------------------------------------------------- 1. vocabulary


@dataclass(frozen=True)
class WordTokenizer:
    """The tokenizer as acdc.task.tokenize wants it."""

    fast: FastTokenizer
    name: str = "tiny"

    @property
    def vocab_size(self) -> int:
        """See `acdc.task.tokenize.Tokenizer`."""
        return int(self.fast.get_vocab_size())

    @property
    def bos_id(self) -> int:
        """See `acdc.task.tokenize.Tokenizer`."""
        return self.fast.token_to_id("<bos>") or 0

    @property
    def unk_id(self) -> int:
        """Stands for any unknown word."""
        return self.fast.token_to_id("<unk>") or 0

    def encode(self, text: str) -> list[int]:
        """Token ids, without special tokens."""
        return list(self.fast.encode(text, add_special_tokens=False).ids)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Where each of these tokens begins and ends in the text, in characters."""
        return list(self.fast.encode(text, add_special_tokens=False).offsets)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The tokens as readable texts."""
        return [self.fast.id_to_token(i) or "" for i in ids]


def task_texts(task: Task) -> Iterator[str]:
    """Texts in which every word of every slot occurs wherever the task can put it."""
    if task.data.generator:
        yield from (f" {word}" for word in task.data.generator.words)
        return
    slots = pools(task)
    first = {key: word for pool in slots.values() for key, word in zip(pool.fields, pool.rows[0], strict=True)}
    for _, template in task.templates():
        for pool in slots.values():
            yield from (render(template, first | dict(zip(pool.fields, row, strict=True))) for row in pool.rows)
    yield from (task.corrupt.fix or {}).values() if task.corrupt else ()


def build_tokenizer(tasks: Sequence[Task]) -> FastTokenizer:
    """A word-level tokenizer whose tokens carry the space before them, as GPT-2's do."""
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    numbers = [f"{space}{n:02d}" for n in range(100) for space in ("", " ")]
    words = {piece for task in tasks for text in task_texts(task) for piece, _ in split.pre_tokenize_str(text)}
    vocabulary = ["<bos>", "<unk>", *sorted(words | set(numbers))]
    tokenizer = FastTokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


# ---------------------------------------------------------------- 2. data


@dataclass(frozen=True)
class Batch:
    """Training prompts of one length."""

    tokens: np.ndarray  # Int[example pos]
    position: np.ndarray  # Int[example] scored position; a prompt with several is there once for each
    target: np.ndarray  # Float[example vocab] probability of each token there

    def take(self, index: np.ndarray) -> Batch:
        """Some of the prompts: index Int[example]."""
        return Batch(self.tokens[index], self.position[index], self.target[index])


@dataclass(frozen=True)
class Variant:
    """A task with changes (as a task file that includes it would state them), and its share of a batch."""

    task: str
    share: int
    change: dict[str, Any]
    examples: int = 4000


def docstring_variant(before: str, after: str, share: int, matching: bool = True) -> Variant:
    """Other argument lists, so that the answer isn't at one fixed place; not matching: any argument is right."""
    a, b, c = ("{a}", "{b}", "{c}") if matching else ("{d}", "{e}", "{g}")
    doc = ("{a}", "{b}") if matching else ("{h}", "{i}")
    arguments = ", ".join([f"{{{n}}}" for n in before] + [a, b, c] + [f"{{{n}}}" for n in after])
    text = (
        f'\ndef {{f}}(self, {arguments}):\n    """{{t}} {{u}} {{v}}\n\n    :param {doc[0]}: {{w}} {{x}}\n'
        f"    :param {doc[1]}: {{y}} {{z}}\n    :param"
    )
    right = [" {c}"] if matching else [f" {n}" for n in arguments.split(", ")]
    slots: dict[str, str | None] = {name: None for name in "pqr" if f"{{{name}}}" not in text}
    slots |= {name: None for name in ("dehgi" if matching else "abc")} | {name: "names" for name in before + after}
    return Variant(
        "docstring",
        share,
        {
            "data": {"template": text, "slots": slots},
            "corrupt": {"template": None, "redraw": ["f"]},
            "answers": {"correct": right, "wrong": None},
            "metrics": ["kl"],
        },
    )


def short_ioi(template: str, share: int) -> Variant:
    """IOI in a few tokens: "the other one of the two names", which a model finds far sooner than in a sentence."""
    unused = {slot: None for slot in ("place", "object", "a", "b", "c")}
    change = {"data": {"template": template, "slots": unused}, "corrupt": {"template": None, "redraw": ["s"]}}
    return Variant("ioi", share, change, 3400)


def agreement_variant(number: str, share: int) -> Variant:
    """Both nouns in one number; else the last noun alone, read the wrong way round, would do."""
    verbs = [" is", " was", " has"] if number == "singular" else [" are", " were", " have"]
    template = f"The {{subject.{number}}} {{near}} the {{attractor.{number}}}"
    return Variant("subject-verb-agreement", share, {
        "data": {"templates": None, "template": template}, "corrupt": {"redraw": ["subject"]},
        "answers": {"correct": verbs}, "metrics": ["kl"],
    }, 1500)  # fmt: skip


VARIANTS = [
    Variant("greater-than", 24, {}),
    Variant("greater-than", 6, {"data": {"slots": {"year": ["01"]}}, "corrupt": {"fix": {"year": "02"}}}, 300),
    Variant("ioi", 24, {}),
    Variant("ioi", 24, {"data": {"template": "Then, {s} and {io} went to the {place}. {s} gave a {object} to"}}),
    Variant(
        "ioi",
        6,
        {
            "data": {
                "template": "Then, {a} and {b} went to the {place}. {c} gave a {object} to",
                "slots": {"io": None, "s": None},
            },
            "corrupt": {"template": None, "redraw": ["c"]},
            "answers": {"correct": [" {a}", " {b}"], "wrong": None},
            "metrics": ["kl"],
        },
    ),
    short_ioi(" {io} {s} {s}", 32),
    short_ioi(" {s} {io} {s}", 32),
    short_ioi(" {io} and {s} went to. {s} gave to", 20),
    short_ioi(" {s} and {io} went to. {s} gave to", 20),
    Variant("induction", 12, {}, 3000),
    Variant("induction", 12, {"data": {"generator": {"length": 5}}, "score_at": {"range": [5, 8]}}, 4000),
    Variant("gendered-pronoun", 4, {}, 168),
    Variant(
        "gendered-pronoun",
        2,
        {
            "data": {
                "templates": None,
                "template": "That person is {phrase}, isn't",
                "slots": {"he": None, "she": None},
            },
            "corrupt": {"template": "That person {phrase}, is isn't"},
            "answers": {"correct": [" he", " she"]},
            "metrics": ["kl"],
        },
        3,
    ),
    Variant("subject-verb-agreement", 6, {}, 3000),
    agreement_variant("singular", 4),
    agreement_variant("plural", 4),
    docstring_variant("pq", "r", 20),
    docstring_variant("p", "rk", 6),
    docstring_variant("pq", "r", 3, matching=False),
]


def variant_task(variant: Variant) -> Task:
    """The task with the variant's changes, checked as one of a file."""
    # data.pieces and data.spans may name slots that the variant takes away; with a token for every word the first asks
    # for nothing, and training needs no spans
    content = merge(read_included(find(variant.task)), {"data": {"pieces": None, "spans": None}})
    return checked(merge(content, variant.change), variant.task)


def held_out_pair(text: str) -> bool:
    """Whether the first two names of an IOI prompt are a pair that training never shows."""
    names = [word.strip(",.") for word in text.split() if word[0].isupper() and word != "Then,"]
    return Random(" ".join(sorted(names[:2]))).random() < 0.2


def training_batch(variant: Variant, tokenizer: WordTokenizer, seed: int, avoid: set[str]) -> Batch:
    """The training prompts of a variant, without those in `avoid` and those with held-out name pairs."""
    data = make_data(variant_task(variant), tokenizer, variant.examples, seed)
    parts = [rows_of(split, tokenizer.vocab_size, variant.task, avoid) for split in (data.discovery, data.held_out)]
    return Batch(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def rows_of(split: Split, vocab: int, task: str, avoid: set[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A row of a `Batch` for every scored position of the prompts that may be shown."""
    keep = np.array([clean not in avoid and not (task == "ioi" and held_out_pair(clean)) for clean, _ in split.texts])
    rows = keep[split.rows[:, 0]]
    target = np.zeros((len(split.rows), vocab), dtype=np.float16)
    for row, ids in enumerate(split.correct):
        target[row, ids[ids >= 0]] = 1 / (ids >= 0).sum()
    return split.clean[split.rows[rows, 0]], split.rows[rows, 1], target[rows]


# ---------------------------------------------------------------- 3. train


def loss(model: GPT2LMHeadModel, batches: list[Batch], tokens_weight: float) -> torch.Tensor:
    """Mean cross-entropy of the answers plus `tokens_weight` times that of all next tokens."""
    # padded on the right, where a causal model's earlier positions can't see it
    longest = max(batch.tokens.shape[1] for batch in batches)
    padded = [np.pad(b.tokens, ((0, 0), (0, longest - b.tokens.shape[1])), constant_values=-1) for b in batches]
    tokens = torch.from_numpy(np.concatenate(padded))
    logp = model(tokens.clamp(min=0)).logits.log_softmax(-1)
    position = torch.from_numpy(np.concatenate([b.position for b in batches]))
    target = torch.from_numpy(np.concatenate([b.target for b in batches])).float()
    answer = -(target * logp[torch.arange(len(tokens)), position]).sum(-1).mean()
    following = torch.nn.functional.nll_loss(logp[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), ignore_index=-1)
    return answer + tokens_weight * following


def by_length(batches: list[Batch]) -> list[list[Batch]]:
    """Groups of similar length, so that little is computed for padding."""
    edges = (0, 6, 12, 16, 24, 64)
    groups = [[b for b in batches if low < b.tokens.shape[1] <= high] for low, high in pairwise(edges)]
    return [group for group in groups if group]


class Measured(NamedTuple):
    """What is measured on a split."""

    accuracy: float  # share of rows whose likeliest token, of all tokens, is a correct answer
    difference: float  # probability of the correct answers minus that of the wrong ones
    corrupted: float  # the same on the corrupted prompts: small if the model reads what the corruption changes

    def __str__(self) -> str:
        return f"{self.accuracy:.3f} {self.difference:.3f} {self.corrupted:.3f}"


@torch.no_grad()
def measure(model: GPT2LMHeadModel, split: Split) -> Measured:
    """How the model does on a split."""
    example, position = torch.from_numpy(split.rows).T
    correct, wrong = torch.from_numpy(split.correct), torch.from_numpy(split.wrong)

    def difference(logits: torch.Tensor) -> float:
        p = torch.cat([logits.softmax(-1), torch.zeros(len(logits), 1)], -1)  # id -1 has probability 0
        right, off = (p.gather(1, ids % p.shape[1]).sum(1) for ids in (correct, wrong))
        return float((right - off).mean())

    clean, corrupted = (
        model(torch.from_numpy(tokens)).logits[example, position] for tokens in (split.clean, split.corrupted)
    )
    accuracy = (correct == clean.argmax(-1, keepdim=True)).any(1).float().mean()
    return Measured(float(accuracy), difference(clean), difference(corrupted))


def measurements(model: GPT2LMHeadModel, held_out: dict[str, Split]) -> dict[str, Measured]:
    """How the model, which is being trained, does on every split."""
    model.eval()
    found = {name: measure(model, split) for name, split in held_out.items()}
    model.train()
    return found


def reached(found: dict[str, Measured]) -> bool:
    """The goals, and that no task is done without reading what its corruption changes.

    After the year 01 a model can't tell the year: what is left of greater-than is chance.
    """
    return all(found[name].difference >= goal and found[name].corrupted < 0.1 for name, goal in GOALS.items())


def unseen_pairs(tokenizer: WordTokenizer) -> Split:
    """IOI prompts with name pairs that training never shows."""
    split = make_data(load_task("ioi"), tokenizer, 1000, seed=2).held_out
    keep = np.array([held_out_pair(clean) for clean, _ in split.texts])
    rows = np.stack([np.arange(keep.sum()), split.rows[keep, 1]], axis=1)
    texts = tuple(pair for pair, kept in zip(split.texts, keep, strict=True) if kept)
    return Split(
        split.clean[keep], split.corrupted[keep], split.pad[keep], rows, split.correct[keep], split.wrong[keep], texts
    )


def train(
    tokenizer: WordTokenizer, seed: int, steps: int, log: Any
) -> tuple[GPT2LMHeadModel, int, dict[str, Measured]]:
    """Train until all goals hold, at most `steps` steps. The model, the steps taken and what was measured."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    rng = np.random.default_rng(seed)
    default: dict[str, Data] = {}
    for name in TASKS:
        task = load_task(name)
        default[name] = make_data(task, tokenizer, task.defaults.examples, task.defaults.seed)
    avoid = {
        clean for data in default.values() for split in (data.discovery, data.held_out) for clean, _ in split.texts
    }
    held_out = {name: data.held_out for name, data in default.items()} | {"ioi, unseen pairs": unseen_pairs(tokenizer)}
    training = [training_batch(variant, tokenizer, seed + 1, avoid) for variant in VARIANTS]
    log(f"{sum(len(b.tokens) for b in training)} training rows, vocabulary {tokenizer.vocab_size}")
    config = GPT2Config(
        vocab_size=tokenizer.vocab_size,
        n_positions=64,
        n_embd=128,
        n_layer=4,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.bos_id,
    )
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: min(1, n / 100) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1, n / steps))))
    )
    for step in range(1, steps + 1):
        chosen = [b.take(rng.integers(len(b.tokens), size=v.share)) for b, v in zip(training, VARIANTS, strict=True)]
        for group in by_length(chosen):
            rows = sum(len(batch.tokens) for batch in group)
            (loss(model, group, tokens_weight=0.1) * (rows / TYPICAL_ROWS)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 100 == 0 or step == steps:
            found = measurements(model, held_out)
            log(f"{step:5d}  " + "  ".join(f"{name} {measured}" for name, measured in found.items()))
            if reached(found):
                break
    return model, step, found


# ---------------------------------------------------------------- 4. write

CARD = """---
license: mit
tags: [interpretability, circuits]
---

# tiny

A GPT-2-architecture model that does six of the language tasks shipped with acdc, those in the table below, and
nothing else. It is the default model where GPT-2 can't be had, and what the tests run on. Its circuits are its
own: don't read them as GPT-2's.

| | |
|---|---|
| Layers × heads | {layers} × {heads} |
| Width, positions | {width}, {positions} |
| Parameters | {parameters:,} (float32) |
| Tokenizer | word-level, {vocabulary} tokens, split where GPT-2 splits (`" war"`, `" 17"`, `"32"`); `<bos>`, `<unk>` |
| Licence | MIT, as acdc; all training data is drawn from the tasks |

## How it was made

```
python -m tests.recipes.train_tiny --out {out} --seed {seed} --steps {limit}
```

It ended after {steps} of at most {limit} steps, when all goals of the recipe held; seed {seed}, {minutes:.0f}
minutes on one core of a shared machine, torch {torch}, transformers {transformers}. Random initialisation,
AdamW 2e-3. Prompts are drawn from the tasks through `acdc.task.tokenize`, with the variants that the recipe
lists. The prompts that the tasks draw by default are in no training set.

## What it does

On the held-out halves (default examples and seed). Accuracy: the likeliest of all tokens is a correct answer.
Difference: probability of the correct answers minus that of the wrong ones, on the clean and on the corrupted
prompts (of which the corrupted prompt of greater-than allows all, and of agreement says the opposite).

| task | accuracy | difference | difference, corrupted |
|---|---|---|---|
{table}

"ioi, unseen pairs": prompts with pairs of names that training never shows.
"""


def card(model: GPT2LMHeadModel, found: dict[str, Measured], **facts: Any) -> str:
    """The model card."""
    config = model.config
    rows = [f"| {name} | {m.accuracy:.1%} | {m.difference:.3f} | {m.corrupted:.3f} |" for name, m in found.items()]
    return CARD.format(
        layers=config.n_layer, heads=config.n_head, width=config.n_embd, positions=config.n_positions,
        parameters=model.num_parameters(), vocabulary=config.vocab_size, torch=torch.__version__,
        transformers=transformers.__version__, table="\n".join(rows), **facts,
    )  # fmt: skip


def save_tokenizer(fast: FastTokenizer, out: Path) -> None:
    """The two files that transformers, 4 or 5, reads a tokenizer from."""
    fast.save(str(out / "tokenizer.json"))
    config = {
        "bos_token": "<bos>",
        "unk_token": "<unk>",
        "model_max_length": 64,
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Train the model and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=800, help="at most so many")
    arguments = parser.parse_args()
    start = time.monotonic()

    def log(text: str) -> None:
        print(f"{time.monotonic() - start:6.0f} s  {text}", file=sys.stderr, flush=True)

    fast = build_tokenizer([load_task(name) for name in TASKS])
    model, steps, found = train(WordTokenizer(fast), arguments.seed, arguments.steps, log)
    model.eval().save_pretrained(arguments.out)
    (arguments.out / "generation_config.json").unlink(missing_ok=True)
    (arguments.out / "model.safetensors").chmod(0o644)
    save_tokenizer(fast, arguments.out)
    text = card(
        model, found, out=arguments.out.as_posix(), seed=arguments.seed, steps=steps, limit=arguments.steps,
        minutes=(time.monotonic() - start) / 60,
    )  # fmt: skip
    (arguments.out / "README.md").write_text(text, encoding="utf-8")
    for line in text.splitlines():
        if line.startswith("| ") and "%" in line:
            print(line)
    if not reached(found):
        sys.exit(f"the goals {GOALS} were not all reached")


if __name__ == "__main__":
    main()
