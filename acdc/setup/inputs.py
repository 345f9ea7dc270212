"""What a config names, loaded and checked: task, model, prompts, and their clean and ablated activations."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from acdc.errors import FileError
from acdc.graph.scores import Scores
from acdc.io.folder import FOUND
from acdc.model.checkpoint import Checkpoint, open_checkpoint
from acdc.model.config import ModelConfig
from acdc.model.load import Model, free_memory, load_model, place
from acdc.patching.offload import Parts
from acdc.patching.problem import Problem
from acdc.setup.config import Config
from acdc.setup.features import Chosen, features_hash, with_features, with_most_features
from acdc.setup.memory import default_memory, expected, prompts_at_once
from acdc.task.schema import Task
from acdc.task.tokenize import Data, Split, make_data


@dataclass(frozen=True)
class Inputs:
    """What a config names. Scores, effects and activations are computed once and shared by all that `under` returns."""

    config: Config
    task: Task
    model: Model
    data: Data
    scores: dict[tuple[object, ...], Scores] = field(default_factory=dict)  # of methods that have been run already
    effects: dict[tuple[str, bytes], np.ndarray] = field(default_factory=dict)  # by metric and circuit, likewise
    _parts: dict[str, Parts] = field(default_factory=dict)

    def at(self, **bound: float) -> Inputs:
        """The same inputs with another threshold, or target."""
        return self.under(self.config.model_copy(update=bound))

    def under(self, config: Config) -> Inputs:
        """The same inputs for another config that needs the same model, prompts and activations."""
        assert config.needs == self.config.needs
        resolved = {key: getattr(self.config, key) for key in FOUND}
        return replace(self, config=config.model_copy(update=resolved))

    @property
    def evaluation_split(self) -> str:
        """The prompts that circuits are evaluated on: `held_out`, or `discovery` for a task that has no others."""
        return "held_out" if _halves(self.data) == 2 else "discovery"

    @property
    def expected_memory(self) -> int:
        """About how many bytes the run takes at most (`acdc.setup.memory.expected`)."""
        return self._expected(self.data.discovery)

    def _expected(self, prompts: Split) -> int:
        model = self.model.transformer
        return expected(self.config, model.config, prompts, _halves(self.data), model.device.type)

    def memory_note(self, bound: float | None) -> str:
        """About how much memory the run takes; if that is more than `bound` bytes or than there is, what takes less."""
        needed = self.expected_memory
        device = self.model.transformer.device
        weights = self.model.checkpoint.sizes.n_weights * self.model.transformer.dtype.itemsize
        note = f"memory: about {needed / 1e9:.1f} GB" + " of the device's" * (device.type == "cuda")
        there = weights + free_memory(device)
        if needed <= min(bound or there, there):
            return note
        fewest = self._expected(self.data.discovery.take([0]))
        instead = [f"fewer prompts (--examples; with one it takes {fewest / 1e9:.1f} GB)"] * (fewest < 0.9 * needed)
        if not bound:
            instead.append("prompts in parts (--memory)")
        instead.append("another card" if device.type == "cuda" else "another machine")
        limit = "--memory allows" if bound and needed > bound else f"the {there / 1e9:.1f} GB that there are"
        return f"{note}, more than {limit}; what takes less, or has more: {', '.join(instead)}"

    def parts(self, half: str) -> Parts:
        """The clean and ablated activations of one half of the prompts, `discovery` or `held_out`."""
        if half not in self._parts:
            # No inference mode: methods take gradients through these activations.
            with torch.inference_mode(False), torch.no_grad():
                prompts = getattr(self.data, half)
                config = self.config
                self._parts[half] = Parts(
                    self.model.transformer, prompts, config.ablation, config.part, self.data.spans
                )
        return self._parts[half]

    def problem(self, half: str) -> Problem:
        """What a method is given of one half."""
        return Problem(self.model.transformer, self.parts(half), self.config.metric)


def load(
    config: Config,
    task: Task,
    memory: float | None = None,
    of: Model | Checkpoint | None = None,
    features: Chosen = (),
) -> Inputs:
    """Load the model, draw the prompts, and check that they fit; the config returned has the hashes of both.

    `memory` are the bytes to stay below, by default `default_memory`; `of` is the config's model, if that is at hand;
    `features` are those that are nodes, by layer, by default the ones that matter most on the prompts. Raises UserError
    if model or prompts can't be had, have changed since the config was resolved, or don't fit.
    """
    checkpoint = of.checkpoint if isinstance(of, Model) else of or open_checkpoint(config.model)
    if not isinstance(of, Model):
        place(checkpoint, config.device, config.dtype)  # before many prompts are drawn
    data = make_data(task, checkpoint.tokenizer, config.examples, config.seed, bool(config.positions))
    check_number(config, with_most_features(checkpoint.sizes, config), data)  # before the model is loaded
    halves = data.discovery, data.held_out
    checkpoint.check_fits(*halves)
    model = of if isinstance(of, Model) else load_model(checkpoint, config.device, config.dtype, *halves)
    resolved = {"model_hash": model.hash, "data_hash": data.hash[:16], "features_hash": features_hash(config)}
    for key, found in resolved.items():
        stated = getattr(config, key)
        if stated not in (None, found):
            what = {"model_hash": "model has", "data_hash": "data has", "features_hash": "transcoders have"}[key]
            raise FileError(f"config: {key} is {stated}, but it is {found} now; the {what} changed")
    model = replace(model, transformer=with_features(model.transformer, config, data.discovery, features))
    check_number(config, model.transformer.config, data)
    device = model.transformer.device
    part = config.part
    if part is None:
        bound = memory or default_memory(device)
        part = prompts_at_once(config, model.transformer.config, data.discovery, bound, _halves(data), device.type)
    return Inputs(config.model_copy(update={**resolved, "part": part}), task, model, data)


def check_number(config: Config, sizes: ModelConfig, data: Data) -> None:
    """Raise FileError if a config asks for more edges, or edge-spans, than there are."""
    n = sizes.graph().n_edges * max(1, len(data.spans))
    if config.edges is not None and config.edges > n:
        what = f"edge-spans ({len(data.spans)} spans)" if data.spans else "residual edges"
        raise FileError(f"--edges: {config.edges} of {n:,} {what}; ask for fewer")


def _halves(data: Data) -> int:
    """2, or 1 for a task whose few prompts serve for both discovery and evaluation."""
    return 1 if data.held_out is data.discovery else 2
