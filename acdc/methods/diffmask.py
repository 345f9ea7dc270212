"""DiffMask+ (Chintam et al. 2023, arXiv 2310.12611; after De Cao et al. 2021, arXiv 2112.06837).

In contrast to the other masks: which fewest nodes, if they write their ablated outputs in the clean run, make the model
predict as in the ablated run? From the papers: one hard-concrete gate per head and MLP, 1 where it intervenes; the
expected number of interventions is minimised under a constraint on the prediction, enforced by a Lagrange multiplier
that follows the gradient upwards and never falls below 0. Our reading: the constraint is

    KL(prediction of the ablated run ‖ of the intervened run) ≤ margin × KL(the same ‖ of the clean run)

in the mean over the prompts, which needs no unit, and the inputs, whose change would be the whole effect, are never
replaced. The objective is the expected share of interventions + λ (KL / KL without any intervention − margin). KL is
used whatever the problem's metric. Score of a node = probability of an intervention, from 0 to 1; 0.5 is the natural
threshold.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from acdc.errors import UserError
from acdc.graph.scores import Scores
from acdc.io.progress import Show, silent
from acdc.methods.masks import Batches, Training, Update, p_open, train
from acdc.methods.subnetwork_probing import of_gates
from acdc.patching.metrics import Metric, make_metric
from acdc.patching.patch import PatchedModel
from acdc.patching.problem import Problem
from acdc.registry import METHODS

MARGIN = 0.1  # of the KL without any intervention
ASCENT = 0.1  # step of the multiplier per unit of the constraint


def score(
    problem: Problem,
    updates: int = METHODS["diffmask"].repeats,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: Show = silent,
) -> Scores:
    """Scores of all nodes, and of all edges by them; `checkpoint` and errors as in `acdc.methods.masks.train`. Raises
    UserError if clean and ablated run predict the same."""
    model = problem.model
    batches = Batches(problem)
    n_inputs = len(problem.graph.inputs)
    metrics, untouched = _targets(problem, batches)

    def objective(u: Update) -> Tensor:
        nodes = torch.cat([u.gates.new_ones(n_inputs), 1 - u.gates])
        left = metrics[u.batch](PatchedModel(model, u.cache).with_nodes(nodes)).mean() / untouched
        return p_open(u.alpha).mean() + u.multipliers[0] * (left - MARGIN)

    n = len(problem.graph.senders) - n_inputs
    training = Training("diffmask", {"margin": MARGIN}, updates, seed, n, objective, (0.0,), (ASCENT,), least=0.0)
    return of_gates(problem, p_open(train(training, problem, batches, checkpoint, progress)))


@torch.no_grad()
def _targets(problem: Problem, batches: Batches) -> tuple[list[Metric], float]:
    """The KL from the ablated run's prediction, for each batch; and its mean over all prompts for the clean run."""
    model = problem.model
    metrics: list[Metric] = []
    total = 0.0
    for cache in batches:
        none = torch.zeros(len(problem.graph.senders), dtype=model.dtype, device=model.device)
        metrics.append(
            make_metric("kl", model, replace(cache.targets, clean=PatchedModel(model, cache).with_nodes(none)))
        )
        total += float(metrics[-1](cache.targets.clean).sum())
    if not total > 0:
        raise UserError("--method diffmask: clean and ablated run predict the same, so there is nothing to find")
    return metrics, total / problem.n_prompts
