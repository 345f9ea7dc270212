"""The published settings in configs/paper, and docs/checks.md, with stand-ins for the weights that are not here."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import yaml

from acdc.commands.check import Checks, check_list
from acdc.errors import UserError
from acdc.files.published import load_published
from acdc.model.find import BUNDLED
from acdc.model.load import load_model
from acdc.setup.config import resolve
from tests.support import ROOT
from tests.support.docs import blocks
from tests.support.runs import made

PAPER = sorted((ROOT / "configs" / "paper").glob("*.yaml"))
SIZES = {"greater-than": (32_491, 32_923), "ioi": (32_491, 32_923), "docstring": (1281, 1377)}  # Conmy et al. 2023


def entries(path: Path):
    return Checks.model_validate(yaml.safe_load(path.read_text(encoding="utf-8"))).checks


def documented(language: str, word: str) -> str:
    """The block of docs/checks.md that has a word."""
    (block,) = [block for block in blocks(language, ROOT / "docs" / "checks.md") if word in block]
    return block


@pytest.mark.parametrize("path", PAPER, ids=lambda p: p.stem)
def test_the_published_settings_are_those_of_the_paper(path):
    published = load_published(path.stem)
    assert (published.graph.n_edges, published.graph.n_edges_direct) == SIZES[path.stem]
    metrics = set()
    for entry in entries(path):
        assert entry.against == path.stem
        assert entry.classes is None or entry.classes <= len(published.classes)
        for options in entry.options():
            config, task, _ = resolve(options, None, None)
            assert (task.name, config.method, config.ablation) == (path.stem, "acdc", "corrupted")
            assert (config.direct, config.order, config.abs) == (True, "paper", False)
            metrics.add(config.metric)
        counts = [entry.counts[t] for t in sorted(entry.counts, reverse=True)] if entry.counts else []
        assert counts == sorted(counts) and all(0 < n < SIZES[path.stem][1] for n in counts)
    assert metrics == {"kl", "prob-diff" if path.stem == "greater-than" else "logit-diff"}


def test_there_is_a_file_for_every_published_sweep():
    assert {path.stem for path in PAPER} == set(SIZES)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A folder with a published circuit for tiny, and a function that writes a list with counts and checks it."""
    folder = tmp_path_factory.mktemp("sweep")
    run = {"task": "greater-than", "model": "tiny", "examples": 8, "dtype": "float64", "device": "cpu"}
    file = json.loads(made(folder / "run", **run, threshold=0.05).read_text())
    edges = [e["name"] for e in file["edges"] if "->m" in e["name"] or "<" in e["name"].split("->")[1]]
    edges += [e["name"] for e in file["edges"] if e["name"].endswith("->logits")]
    nodes = sorted({e.split("->")[0] for e in edges} - {"input"})
    content = {
        "name": "mine",
        "task": "greater-than",
        "model": "tiny",
        "source": "test",
        "graph": {"layers": 4, "heads": 4},
        "classes": {"found": nodes},
        "edges": edges,
        "counts": {
            "edges": file["graph"]["edges"]["kept"],
            "with_direct": file["graph"]["edges_with_direct"]["kept"],
        },
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump(content))

    def check(counts: dict, **more):
        entry = {"name": "tiny, KL", "run": run, "against": "mine.yaml", "counts": counts, **more}
        (folder / "checks.yaml").write_text(yaml.safe_dump({"checks": [entry]}, sort_keys=False))
        return check_list(folder / "checks.yaml")

    first = check({0.1: 1, 0.05: 1, 0.02: 1}, within=0)
    return check, {
        t: int(re.match(r"(\d+) edges", (o.problems + o.facts)[0])[1])
        for t, o in zip((0.1, 0.05, 0.02), first, strict=True)
    }


def test_counts_that_were_found_pass(sweep):
    check, counts = sweep
    outcomes = check(counts, within=0)
    assert [o.name for o in outcomes] == ["tiny, KL, τ = 0.1", "tiny, KL, τ = 0.05", "tiny, KL, τ = 0.02"]
    assert all(
        o.passed and f"{n} edges; published: {n} (+0%)" in o.facts
        for n, o in zip(counts.values(), outcomes, strict=True)
    )
    (same,) = check({0.05: counts[0.05]}, recall=1, precision=1, classes=1)
    assert same.passed


def test_changed_counts_fail_with_a_line_per_threshold(sweep):
    check, counts = sweep
    changed = {t: 2 * n + 3 for t, n in counts.items()}
    outcomes = check(changed)
    assert [len(o.problems) for o in outcomes] == [1, 1, 1]
    for (t, n), theirs, o in zip(counts.items(), changed.values(), outcomes, strict=True):
        assert o.problems[0].startswith(f"{n} edges; published: {theirs} (")
        assert f"τ = {t:g}" in o.text()
    assert all(o.passed for o in check(changed, within=0.9))


def test_a_quarter_is_accepted_and_bounds_hold_at_every_threshold(sweep):
    check, counts = sweep
    n = counts[0.02]
    (near,) = check({0.02: round(1.2 * n)})
    assert near.passed
    strict, loose = check({0.1: counts[0.1], 0.02: n}, recall=0.85)
    assert not strict.passed and "recall" in strict.problems[0]
    assert loose.passed


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"within": 0.1, "counts": None}, "within needs counts"),
        ({"run": {"task": "ioi", "model": "tiny", "threshold": 0.1}}, "one of the two"),
        ({"run": {"task": "ioi", "model": "tiny", "edges": 3}}, "one of the two"),
        ({"run": {"task": "ioi", "model": "tiny", "steps": 3}}, "--steps: does not apply to acdc"),
        ({"run": None, "circuit": "a.json"}, "counts need a run"),
        ({"against": "a.json"}, "counts need a run"),
        ({"counts": {}}, "counts"),
        ({"counts": {-0.1: 3}}, "threshold"),
        ({"counts": {"1e-4": 3}}, "1e-4"),
        ({"counts": {0.1: 0}}, "counts"),
    ],
)
def test_a_bad_sweep_is_one_message_before_anything_runs(tmp_path, change, says):
    entry = {"name": "a", "run": {"task": "ioi", "model": "tiny"}, "against": "ioi", "counts": {0.1: 3}, **change}
    path = tmp_path / "checks.yaml"
    path.write_text(yaml.safe_dump({"checks": [{k: v for k, v in entry.items() if v is not None}]}))
    with pytest.raises(UserError, match=says):
        check_list(path, say=lambda _: pytest.fail("ran"))


# ---------------------------------------------------------------- models of the published shapes


class FromTransformerLens:
    """What the script of docs/checks.md takes of a HookedTransformer: random weights, 4 layers of 8 heads, no MLPs."""

    def __init__(self) -> None:
        sizes = {"n_layers": 4, "n_heads": 8, "d_model": 32, "d_head": 4, "n_ctx": 64}
        sizes |= {"d_vocab": 870, "d_vocab_out": 870}
        self.cfg = SimpleNamespace(**sizes, eps=1e-5, attn_only=True, positional_embedding_type="standard")
        self.tokenizer = SimpleNamespace(
            bos_token_id=json.loads((BUNDLED / "tiny" / "tokenizer.json").read_text())["model"]["vocab"]["<bos>"],
            save_pretrained=lambda to: shutil.copytree(
                BUNDLED / "tiny", to, ignore=lambda *_: {"config.json", "model.safetensors", "README.md"}
            ),
        )
        g, c = torch.Generator().manual_seed(0), self.cfg
        shapes = {"embed.W_E": (870, 32), "pos_embed.W_pos": (64, 32), "unembed.W_U": (32, 870), "unembed.b_U": (870,)}
        for i in range(4):
            for x in "QKV":
                shapes |= {f"blocks.{i}.attn.W_{x}": (8, 32, 4), f"blocks.{i}.attn.b_{x}": (8, 4)}
            shapes |= {f"blocks.{i}.attn.W_O": (8, 4, 32), f"blocks.{i}.attn.b_O": (32,)}
            shapes |= {f"blocks.{i}.attn.mask": (c.n_ctx, c.n_ctx), f"blocks.{i}.attn.IGNORE": ()}
        self.w = {name: 0.4 * torch.randn(shape, generator=g) for name, shape in shapes.items()}

    def state_dict(self):
        return self.w

    def __call__(self, ids):
        """Float[batch pos vocab]: the logits, written down as plainly as can be."""
        w = self.w

        def norm(x):
            x = x - x.mean(-1, keepdim=True)
            return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()

        x = w["embed.W_E"][ids] + w["pos_embed.W_pos"][: ids.shape[1]]
        for i in range(4):
            at, y = f"blocks.{i}.attn.", norm(x)
            q, k, v = (torch.einsum("bpd,hde->bhpe", y, w[f"{at}W_{n}"]) + w[f"{at}b_{n}"][:, None, :] for n in "QKV")
            causal = torch.ones(ids.shape[1], ids.shape[1]).tril() == 0
            pattern = (q @ k.transpose(2, 3) / 2).masked_fill(causal, -torch.inf).softmax(-1)  # 2 = √d_head
            x = x + torch.einsum("bhpe,hed->bpd", pattern @ v, w[f"{at}W_O"]) + w[f"{at}b_O"]
        return norm(x) @ w["unembed.W_U"] + w["unembed.b_U"]


@pytest.fixture
def attn_only(tmp_path, monkeypatch, capsys):
    """The directory that the script of docs/checks.md makes; it is `attn-only-4l` in the working directory."""
    hooked = SimpleNamespace(from_pretrained=lambda name, device: FromTransformerLens())
    module = ModuleType("transformer_lens")
    module.HookedTransformer = hooked  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformer_lens", module)
    monkeypatch.chdir(tmp_path)
    exec(compile(documented("python", "HookedTransformer"), "docs/checks.md", "exec"), {})
    assert "largest difference" in capsys.readouterr().out
    return tmp_path / "attn-only-4l"


def test_the_script_of_the_docs_makes_a_model_of_the_published_shape(attn_only):
    graph = load_model(str(attn_only)).transformer.config.graph()
    assert (graph.n_edges, graph.n_edges_direct) == SIZES["docstring"]


@pytest.mark.slow
@pytest.mark.usefixtures("attn_only")
def test_docstring_runs_on_a_random_model_of_its_shape(tmp_path):
    """As it stands, but for 4 prompts, and at every fourth threshold."""
    checks = yaml.safe_load((ROOT / "configs" / "paper" / "docstring.yaml").read_text(encoding="utf-8"))
    for check in checks["checks"]:
        check["run"] |= {"examples": 4, "device": "cpu"}
        check["counts"] = dict(list(check["counts"].items())[::4])
    few = tmp_path / "few.yaml"
    few.write_text(yaml.safe_dump(checks, sort_keys=False))
    outcomes = check_list(few)
    assert len(outcomes) == 4 + 1 + 2 + 1
    assert not all(o.passed for o in outcomes)
    lines = [(o.problems + o.facts) for o in outcomes]
    assert all(any(re.match(r"\d+ edges; published: \d+", line) for line in found) for found in lines)
    assert all(any("of 4 component types" in line for line in found) for found in lines)
