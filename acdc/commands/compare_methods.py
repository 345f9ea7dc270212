"""Run the methods of a comparison on one task; each in a directory of its own, where a second call resumes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from acdc.commands.compare_plan import THEN_ACDC, ComparePlan, has_threshold, ranked_by
from acdc.commands.cost import Cost, metered, read_cost
from acdc.commands.run import describe, measure, run_or_read
from acdc.files.circuit import CircuitFile
from acdc.graph.circuit import Circuit
from acdc.graph.scores import Scores, write_scores
from acdc.io.folder import claim
from acdc.io.progress import Show
from acdc.methods.discover import CHECKPOINT, SCORES, computed, scored, search
from acdc.registry import METHODS, parse_filter
from acdc.setup.config import Config
from acdc.setup.inputs import Inputs

Array = np.ndarray

COST = "cost.json"


@dataclass(frozen=True)
class Found:
    """What a method found.

    Args:
        circuits: by size or threshold, without dead edges
        allowed: Bool[sender receiver], the edges that a filter left
    """

    method: str
    cost: Cost
    scores: Scores
    circuits: dict[float, Circuit]
    allowed: Array | None = None


@dataclass(frozen=True)
class Finder:
    """Runs methods on one task."""

    plan: ComparePlan
    inputs: Inputs
    progress: Show

    def find(self, method: str, thresholds: list[float]) -> Found:
        """Find a method's circuits: for ACDC one at each threshold, for the others one of each size."""
        if has_threshold(method):
            return self.by_threshold(method, thresholds)
        config = self.inputs.config
        scores, cost = self.scores(method)
        pick = scores.greedy if self.plan.greedy else scores.top
        circuits: dict[float, Circuit] = {}
        for size in self.plan.sizes:
            circuits[size] = scores.circuit(pick(size, config.abs), config.direct).pruned()
        return Found(method, cost, scores, circuits)

    def scores(self, method: str) -> tuple[Scores, Cost]:
        """Return a method's scores of all edges, and what they cost."""
        metric = ranked_by(self.inputs.config, self.inputs.task, method)
        changes: dict[str, Any] = {"method": method, "abs": False}
        if metric != "none":
            changes["metric"] = metric
        if "updates" in METHODS[method].options:
            changes["updates"] = self.plan.updates
        inputs = self._with(**changes)
        folder = self._folder(method, inputs.config)
        if not (folder / SCORES).exists():
            # The cost is written before the scores, so that scores never lack theirs.
            with metered(folder / COST, self._device):
                computed(inputs, method, folder / CHECKPOINT, self.progress)
        return scored(inputs, method, folder, self.progress), read_cost(folder / COST)

    def by_threshold(self, method: str, thresholds: list[float]) -> Found:
        """Find ACDC's circuits at rising thresholds, among the edges that a filter leaves if there is one."""
        allowed = None
        prefilter = None
        cost = Cost()
        if method != "acdc":
            prefilter = method.removesuffix(THEN_ACDC)
            name, share = parse_filter(prefilter)
            filtered, cost = self.scores(name)
            allowed = filtered.best(share)
        inputs = self._with(prefilter=prefilter)
        folder = self._folder(method, inputs.config)
        graph = self.inputs.model.transformer.config.graph()
        circuits = {}
        edges = np.where(graph.edges, 0.0, np.nan)
        for threshold in thresholds:
            at = folder / f"threshold-{threshold:g}"
            circuits[threshold] = self.acdc(inputs.at(threshold), at, folder / COST, allowed)
            edges[circuits[threshold].kept] = threshold
        scores = Scores(graph, edges)
        write_scores(folder / SCORES, scores)
        return Found(method, cost + read_cost(folder / COST), scores, circuits, allowed)

    def reference(self) -> Circuit:
        """Find ACDC's circuit at the task's own threshold."""
        folder = self._folder("reference", self.inputs.config)
        return self.acdc(self.inputs, folder, folder / COST, None)

    def acdc(self, inputs: Inputs, folder: Path, cost: Path, allowed: Array | None) -> Circuit:
        """Find ACDC's circuit at one threshold, without dead edges."""

        def make() -> CircuitFile:
            with metered(cost, self._device):
                found = search(inputs, folder, self.progress, allowed).circuit
            circuit = found.pruned()
            return describe(inputs, circuit, found, measure(inputs, circuit), ())

        return run_or_read(folder, make).circuit()

    @property
    def _device(self) -> torch.device:
        return self.inputs.model.transformer.device

    def _with(self, **changes: Any) -> Inputs:
        """Return the inputs with a changed config, without a threshold."""
        return self.inputs.under(self.inputs.config.model_copy(update={"threshold": None, **changes}))

    def _folder(self, name: str, config: Config) -> Path:
        """Return a method's directory, made if need be; it belongs to one config."""
        folder = self.plan.out / config.task_name / re.sub(r"[^\w.-]+", "-", name)
        claim(folder, config.to_yaml())
        return folder
