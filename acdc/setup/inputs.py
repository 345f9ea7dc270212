"""What a config names, loaded and checked: task, model, prompts, and their clean and ablated runs."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace

import torch

from acdc.errors import FileError, short
from acdc.graph.scores import Scores
from acdc.model.load import Model, load_model
from acdc.patching.offload import Parts
from acdc.patching.problem import Problem
from acdc.setup.config import Config
from acdc.setup.memory import expected, prompts_at_once
from acdc.task.schema import Task
from acdc.task.tokenize import Data, make_data


@dataclass(frozen=True)
class Inputs:
    """What a config names, loaded and checked; nothing has been written yet."""

    config: Config
    task: Task
    model: Model
    data: Data
    scores: dict[tuple[object, ...], Scores] = field(default_factory=dict)  # of methods that have been run
    _parts: dict[str, Parts] = field(default_factory=dict)

    def at(self, threshold: float) -> Inputs:
        """The same at another threshold."""
        return self.under(self.config.model_copy(update={"threshold": threshold}))

    def under(self, config: Config) -> Inputs:
        """The same model, prompts, runs and scores, for a config that needs the same ones."""
        assert config.needs == self.config.needs
        stated = {key: getattr(self.config, key) for key in ("model_hash", "data_hash", "part")}
        return replace(self, config=config.model_copy(update=stated))

    @property
    def evaluation_split(self) -> str:
        """The prompts that a circuit is judged on: `held_out`, or `discovery` for a task that has no others."""
        return "discovery" if _halves(self.data) == 1 else "held_out"

    @property
    def expected_memory(self) -> int:
        """About how many bytes the run takes at most (`acdc.setup.memory.expected`)."""
        t = self.model.transformer
        return expected(self.config, t.config, self.data.discovery, _halves(self.data), t.device.type)

    def parts(self, half: str) -> Parts:
        """The clean and ablated runs of the prompts of one half, `discovery` or `held_out`."""
        if half not in self._parts:
            prompts = getattr(self.data, half)
            # No inference mode: methods take gradients through what is kept here.
            with torch.inference_mode(False), torch.no_grad():
                self._parts[half] = Parts(
                    self.model.transformer,
                    prompts,
                    self.config.ablation,
                    self.config.part,
                    lambda i, run: self.prompt(half, i, run),
                )
        return self._parts[half]

    def prompt(self, half: str, index: int, run: str | None = None) -> str:
        """What messages call a prompt, and its clean or corrupted run where it is of one."""
        clean, corrupted = getattr(self.data, half).texts[index]
        text = short(corrupted if run == "corrupted" else clean)
        return f"prompt {index + 1} of the {half.replace('_', '-')} half{f', {run} run' if run else ''}: {text}"

    def problem(self, half: str) -> Problem:
        """What a method is given of one half."""
        return Problem(self.model.transformer, self.parts(half), self.config.metric)


def load(config: Config, task: Task, memory: float | None = None, model: Model | None = None) -> Inputs:
    """Load the model, draw the prompts and check all; the returned config states the hashes of both.

    Args:
        memory: bytes to stay below; by default half of what the machine has
        model: the config's, where it is already loaded
    """
    model = model or load_model(config.model, config.device, config.dtype)
    data = make_data(task, model.tokenizer, config.examples, config.seed)
    model.check_fits(data.discovery, data.held_out)
    for key, found in (("model_hash", model.hash), ("data_hash", data.hash[:16])):
        stated = getattr(config, key)
        if stated not in (None, found):
            raise FileError(f"config: {key} is {stated}, but it is {found} now; the {key[:5].rstrip('_')} has changed")
    graph = model.transformer.config.graph()
    if config.edges is not None and config.edges > graph.n_edges:
        raise FileError(f"--edges: {config.edges} of {graph.n_edges} residual edges; ask for fewer")
    part = _part(config, model, data, memory)
    resolved = config.model_copy(update={"model_hash": model.hash, "data_hash": data.hash[:16], "part": part})
    return Inputs(resolved, task, model, data)


def _part(config: Config, model: Model, data: Data, memory: float | None) -> int | None:
    """How many prompts are held in memory at once, if not all."""
    if config.part is not None:
        return config.part
    t, bound = model.transformer, memory or default_memory(model.transformer.device)
    return prompts_at_once(config, t.config, data.discovery, bound, _halves(data), t.device.type)


def _halves(data: Data) -> int:
    """How many halves the prompts have: 1 for a task whose few prompts serve as both."""
    return 1 if data.held_out is data.discovery else 2


def default_memory(device: torch.device) -> float:
    """Half of the memory that the device has, in bytes."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 2
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2
