"""Methods that train masks: their gates, their resuming, and what they find."""

from __future__ import annotations

from functools import cache, partial

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from acdc.errors import FileError, UserError
from acdc.methods import diffmask, edge_pruning, masks, subnetwork_probing
from acdc.patching.offload import Parts
from acdc.patching.patch import PatchedModel, patched_rows
from acdc.patching.problem import Problem
from acdc.setup.config import resolve
from acdc.setup.inputs import load
from tests.support.random_models import random_model, random_prompts

METHODS = {
    "subnetwork-probing": partial(subnetwork_probing.score, updates=60),
    "edge-pruning": partial(edge_pruning.score, updates=60),
    "diffmask": partial(diffmask.score, updates=60),
}


class Killed(Exception):
    """In place of a crash."""


def random_problem(seed=0, size=None, **sizes):
    model = random_model(seed, **sizes)
    return Problem(model, Parts(model, random_prompts(seed, model, batch=20), "corrupted", size), "kl")


@cache
def tiny(task, examples=8):
    given = {"task": task, "model": "tiny", "examples": examples, "device": "cpu"}
    inputs = load(*resolve(given, None, None)[:2])
    with torch.no_grad():
        return Problem(inputs.model.transformer, inputs.parts("discovery"), "kl")


def planted(seed=1, strength=(3, 3)):
    """Two heads, one above the other, are all that carries what differs; all other nodes write next to nothing."""
    model = random_model(seed, n_layers=2, n_heads=4, scale=1.0)
    for layer, head, factor in ((0, 1, strength[0]), (1, 2, strength[1])):
        weight = model.weights[f"layers.{layer}.o.weight"]
        others = [h for h in range(4) if h != head]
        weight[others] *= 1e-3
        weight[head] *= factor
        model.weights[f"layers.{layer}.mlp_out.weight"] *= 1e-3
    prompts = random_prompts(seed, model, batch=20)
    prompts.corrupted[:, -1] = prompts.clean[:, -1]  # so nothing reaches the output but through the heads
    return Problem(model, Parts(model, prompts, "corrupted"), "kl")


REAL = {"a0.h1", "a1.h2"}


def chosen(scores):
    return {s.name for s, x in zip(scores.graph.senders, scores.nodes, strict=True) if x >= 0.5}


def value(problem, edges):
    edges = torch.as_tensor(edges).to(problem.model.dtype)
    rows = [patched_rows(problem.model, problem.graph, runs, edges) for runs in problem.parts]
    return float(problem.parts.metric(problem.metric)(torch.cat(rows)).mean())


def kl_left(problem, names):
    """KL to the ablated run's prediction when some nodes are replaced, as a share of what it is without."""
    batches = masks.Batches(problem)
    metrics, untouched = diffmask._targets(problem, batches)
    kept = [0.0 if s.name in names else 1.0 for s in problem.graph.senders]
    nodes = torch.tensor(kept, dtype=problem.model.dtype)
    total = sum(
        float(m(PatchedModel(problem.model, runs).with_nodes(nodes)).sum())
        for m, runs in zip(metrics, batches, strict=True)
    )
    return total / problem.n_prompts / untouched


# --- gates ----------------------------------------------------------------------------------------------------------


def test_what_is_expected_of_gates_is_what_samples_show():
    alpha = torch.linspace(-4, 4, 9, dtype=torch.float64)
    noise = torch.from_numpy(np.random.default_rng(0).random((200_000, 1)))
    gates = masks.sample(alpha, noise)
    assert gates.min() == 0 and gates.max() == 1
    torch.testing.assert_close((gates > 0).double().mean(0), masks.p_open(alpha), atol=4e-3, rtol=0)
    # The median sample is the gate at u = 1/2, which is as open as α says.
    assert ((gates.median(0).values > 0.5) == (alpha > 0))[alpha != 0].all()


def test_gates_start_open_but_not_saturated():
    alpha = torch.tensor(masks.START, dtype=torch.float64)
    noise = torch.linspace(1e-6, 1 - 1e-6, 10_001, dtype=torch.float64)
    gates = masks.sample(alpha, noise)
    assert masks.p_open(alpha) > 0.95
    assert ((gates > 0) & (gates < 1)).double().mean() > 0.2  # those give a gradient


def test_noise_differs_by_seed_and_update():
    first = {tuple(masks._noise(seed, update, 3)) for seed in range(3) for update in range(3)}
    assert len(first) == 9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_most_extreme_noise_gives_finite_gates(monkeypatch, dtype):
    class Extreme:
        def uniform(self, low, high, n):
            return np.array([low, high])

    monkeypatch.setattr(np.random, "default_rng", lambda seed: Extreme())
    assert torch.isfinite(torch.logit(torch.from_numpy(masks._noise(0, 0, 2)).to(dtype))).all()


# --- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "size"), [("subnetwork-probing", None), ("edge-pruning", None), ("diffmask", 7)])
def test_a_killed_training_goes_on_to_the_same_bits(tmp_path, method, size):
    problem, run = random_problem(size=size), METHODS[method]
    whole = run(problem, seed=3)
    path, rng = tmp_path / "masks.safetensors", np.random.default_rng(len(method))
    for kill in sorted(rng.integers(1, 60, 2)):

        def progress(p, kill=kill):
            if p.done == kill and not p.resumed:
                raise Killed

        with pytest.raises(Killed):
            run(problem, seed=3, checkpoint=path, progress=progress)
    seen = []
    again = run(problem, seed=3, checkpoint=path, progress=seen.append)
    assert np.array_equal(again.edges, whole.edges, equal_nan=True)
    saved = kill // masks.SAVED_EVERY * masks.SAVED_EVERY
    if saved:
        assert seen.pop(0)[1:] == (saved, 60, "", f"{saved} updates from the checkpoint")
    assert seen[0].done == 1 + saved
    assert seen[-1][:3] == ("scores", 60, 60)
    assert np.array_equal(run(problem, seed=3, checkpoint=path).edges, whole.edges, equal_nan=True)  # finished already


@pytest.mark.parametrize("method", METHODS)
def test_the_seed_decides(method):
    problem = random_problem()
    a, b, c = (METHODS[method](problem, seed=seed).edges for seed in (0, 0, 1))
    assert np.array_equal(a, b, equal_nan=True)
    assert not np.array_equal(a, c, equal_nan=True)


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    problem, path = random_problem(), tmp_path / "masks.safetensors"
    run = METHODS["subnetwork-probing"]
    run(problem, checkpoint=path)
    for other in (
        lambda: run(problem, checkpoint=path, seed=1),
        lambda: run(problem, checkpoint=path, updates=61),
        lambda: run(problem, checkpoint=path, penalty=0.5),
        lambda: run(Problem(problem.model, problem.parts, "nll"), checkpoint=path),
        lambda: run(random_problem(1), checkpoint=path),
        lambda: METHODS["diffmask"](problem, checkpoint=path),
    ):
        with pytest.raises(FileError, match=r"other settings; remove it or use --force$"):
            other()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_what_is_no_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "masks.safetensors"
    if content is None:
        save_file({"x": torch.zeros(2)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(FileError, match=r"^\S+masks.safetensors: .*--force$"):
        METHODS["diffmask"](random_problem(), checkpoint=path)


def test_a_loss_that_is_not_finite_stops():
    problem = random_problem()
    problem.parts[0].ablated.mlp[:] = torch.nan
    with pytest.raises(UserError, match="subnetwork-probing: the loss is nan at update 1"):
        METHODS["subnetwork-probing"](problem)


def test_diffmask_says_when_the_ablated_run_predicts_the_same():
    model = random_model(0)
    prompts = random_prompts(0, model)
    prompts.corrupted[:] = prompts.clean
    with pytest.raises(UserError, match="nothing to find"):
        diffmask.score(Problem(model, Parts(model, prompts, "corrupted"), "kl"))


def test_batches_are_of_like_size_and_hold_every_prompt_once():
    batches = masks.Batches(random_problem(size=19))  # parts of 19 prompts and of 1
    assert [len(runs.pad) for runs in batches] == [10, 9, 1] or [len(r.pad) for r in batches] == [9, 10, 1]


# --- what they find -------------------------------------------------------------------------------------------------


def test_subnetwork_probing_finds_the_planted_nodes():
    assert chosen(subnetwork_probing.score(planted(), updates=150, penalty=0.5)) == REAL


@pytest.mark.parametrize(("seed", "strength"), [(1, (3, 3)), (5, (3, 3)), (5, (0.7, 3))])
def test_diffmask_finds_the_fewest_nodes_that_flip_the_prediction(seed, strength):
    problem = planted(seed, strength)
    left = {names: kl_left(problem, names) for names in ((), ("a0.h1",), ("a1.h2",), tuple(sorted(REAL)))}
    fewest = next(names for names in sorted(left, key=lambda n: (len(n), left[n])) if left[names] < diffmask.MARGIN)
    assert chosen(diffmask.score(problem, updates=150)) == set(fewest)


def test_edge_pruning_finds_edges_between_planted_nodes():
    problem = planted()
    graph = problem.graph
    scores = edge_pruning.score(problem, updates=150, sparsity=0.9)
    kept = scores.above(0.5)
    touched = {graph.senders[s].name for s in np.flatnonzero(kept.any(axis=1))} - {"input"}
    touched |= {graph.receivers[r].node for r in np.flatnonzero(kept.any(axis=0))}
    assert touched <= REAL | {"logits"}
    best = {graph.edge_name(*divmod(i, len(graph.receivers))) for i in np.flatnonzero(scores.top(2).ravel())}
    assert best <= {"a0.h1->logits", "a1.h2->logits", "input->a0.h1<v>", "input->a1.h2<v>"}
    assert value(problem, kept) < 0.1 * value(problem, np.zeros_like(kept))


@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.95])
def test_edge_pruning_reaches_its_target(sparsity):
    problem = tiny("greater-than")
    scores = edge_pruning.score(problem, sparsity=sparsity, updates=200)
    kept = scores.above(0.5)
    assert 1 - kept.sum() / problem.graph.n_edges == pytest.approx(sparsity, abs=0.03)
    rng, values = np.random.default_rng(0), []
    for _ in range(5):
        other = np.zeros_like(kept)
        other[tuple(rng.permutation(np.argwhere(problem.graph.edges))[: kept.sum()].T)] = True
        values.append(value(problem, other))
    assert value(problem, kept) < 0.3 * min(values)


def test_subnetwork_probing_has_a_small_circuit_that_works():
    problem = tiny("greater-than")
    scores = subnetwork_probing.score(problem, updates=100)
    kept = scores.above(0.5)
    assert 0 < len(chosen(scores)) < 0.7 * len(problem.graph.senders)
    assert value(problem, kept) < 0.1 * value(problem, np.zeros_like(kept))


def test_diffmask_flips_the_prediction_with_few_nodes():
    problem = tiny("ioi")
    scores = diffmask.score(problem, updates=100)
    names = chosen(scores)
    assert 0 < len(names) < 0.3 * len(problem.graph.senders)
    assert kl_left(problem, names) < diffmask.MARGIN


@pytest.mark.parametrize("method", METHODS)
def test_scores_are_probabilities(method):
    scores = METHODS[method](random_problem(dtype=torch.float32))
    known = scores.edges[scores.graph.edges]
    assert ((known >= 0) & (known <= 1)).all()
    assert np.isnan(scores.edges[~scores.graph.edges]).all()
