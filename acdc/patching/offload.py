"""Prompts that don't fit into memory together: activations in parts, kept on disk, and an engine over all parts.

Each part of the prompts has its own engine, and all engines take the same decisions. One part is in memory at a time;
the others are safetensors files, read when their turn comes. Only the scored rows, which are small, are joined: metrics
are computed on the rows of all prompts at once.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from acdc.errors import FileError
from acdc.graph.graph import Graph
from acdc.model.activations import Activations
from acdc.model.transformer import Transformer
from acdc.patching.activations import ActivationCache, means, prepare, unpaired
from acdc.patching.engine import Engine, Removal
from acdc.patching.metrics import Metric, Targets, make_guess, make_metric
from acdc.patching.state import State
from acdc.task.tokenize import Split


class Parts:
    """The clean and ablated activations of a set of prompts, in parts of `size` prompts; several parts are in files."""

    def __init__(
        self, model: Transformer, prompts: Split, ablation: str, size: int | None = None, spans: tuple[str, ...] = ()
    ) -> None:
        """`spans` are the names of the prompts' spans, if edges are kept by span."""
        n = len(prompts.clean)
        size = min(size or n, n)
        self.ablation = ablation
        self.spans = spans
        self._model = model
        self._mean = means(model, prompts) if ablation != "corrupted" else None
        self._folder = tempfile.TemporaryDirectory(prefix="acdc-") if size < n else None
        self._parts: list[ActivationCache | Path] = []
        targets = []
        for start in range(0, n, size):
            part = prompts.take(range(start, min(start + size, n)))
            cache = prepare(model, part, ablation, self._mean, len(spans))
            targets.append(replace(cache.targets, example=cache.targets.example + start))
            self._parts.append(cache if self._folder is None else self._write(cache))
            del cache  # before the next part is made
        self.targets = Targets(*(torch.cat([getattr(t, f.name) for t in targets]) for f in fields(Targets)))

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, index: int) -> ActivationCache:
        """One part, read from its files if the parts don't fit into memory together."""
        part = self._parts[index]
        return part if isinstance(part, ActivationCache) else self._read(part)

    def __iter__(self) -> Iterator[ActivationCache]:
        return (self[i] for i in range(len(self)))

    def metric(self, name: str) -> Metric:
        """The metric over all prompts."""
        return make_metric(name, self._model, self.targets)

    def guess(self, name: str) -> Metric | None:
        """A cheap guess at the metric (`acdc.patching.metrics.make_guess`)."""
        return make_guess(name, self._model, self.targets)

    def scratch(self, name: str) -> Path:
        """A path beside the files of the parts, deleted with them."""
        assert self._folder is not None
        return Path(self._folder.name) / name

    def _write(self, cache: ActivationCache) -> Path:
        folder = self.scratch(f"runs-{len(self._parts)}")
        tensors = {"pad": cache.pad, "rows": cache.rows, "residual": cache.residual, "start": torch.tensor(cache.start)}
        if cache.spans is not None:
            tensors["spans"] = cache.spans
        tensors |= {f"targets {f.name}": getattr(cache.targets, f.name) for f in fields(Targets)}
        tensors |= {f"clean {f.name}": getattr(cache.clean, f.name) for f in fields(Activations)}
        if self._mean is None:
            tensors |= {f"ablated {f.name}": getattr(cache.ablated, f.name) for f in fields(Activations)}
        folder.mkdir()
        for name, x in tensors.items():  # a file each: safetensors copies what it writes
            _save_file({"x": x.contiguous()}, folder / name)
        return folder

    def _read(self, folder: Path) -> ActivationCache:
        t = {path.name: load_file(path, device=str(self._model.device))["x"] for path in folder.iterdir()}
        pad = t["pad"]
        clean = Activations(*(t[f"clean {f.name}"] for f in fields(Activations)))
        if self._mean is None:
            ablated = Activations(*(t[f"ablated {f.name}"] for f in fields(Activations)))
        else:
            ablated = unpaired(self.ablation, self._mean, len(pad))
        targets = Targets(*(t[f"targets {f.name}"] for f in fields(Targets)))
        mask = self._model.attention_mask(pad, t["residual"].shape[2])
        start = int(t["start"])
        return ActivationCache(pad, mask, t["rows"], targets, clean, ablated, t["residual"], start, t.get("spans"))


class PartedEngine:
    """An engine over all parts, with the methods of `acdc.patching.engine.Engine` and their results for all prompts."""

    def __init__(self, model: Transformer, graph: Graph, parts: Parts, metric: Metric, guess: Metric | None) -> None:
        self.model = model
        self.graph = graph
        self._parts = parts
        self._engines: list[Engine] = []
        for index, cache in enumerate(parts):
            self._engines.append(Engine(model, graph, cache, metric, guess, parts.spans))
            self._offload(index)
        # These need no activations, and are the same for all parts.
        first = self._engines[0]
        self.spans = parts.spans
        self.kept = first.kept
        self.kept_at = first.kept_at
        self.alive = first.alive
        self.metric = first.metric
        self.metric_of = first.metric_of
        self.guess = first.guess
        self.guess_of = first.guess_of
        self.extent = first.extent

    @property
    def evaluations(self) -> int:
        """Candidates evaluated, each over all parts."""
        return self._engines[0].evaluations

    def drop(self, receiver: int) -> None:
        """See `Engine`."""
        for engine in self._engines:
            engine.drop(receiver)

    def inert(self, removal: Removal) -> bool:
        """See `Engine`."""
        return all(engine.inert(removal) for engine in self._engines)

    def open(self, receivers: Sequence[int]) -> None:
        """See `Engine`."""
        for engine in self._each(changes=True):
            engine.open(receivers)

    def capacity(self, receivers: Sequence[int]) -> int:
        """See `Engine`."""
        return min(engine.capacity(receivers) for engine in self._engines)

    def rows(self, removals: Sequence[Removal], none: bool) -> Tensor:
        """See `Engine`."""
        return torch.cat([engine.rows(removals, none) for engine in self._each(changes=False)], 1)

    def commit(self, removals: Sequence[Removal]) -> None:
        """See `Engine`."""
        for engine in self._each(changes=True):
            engine.commit(removals)

    def _each(self, changes: bool) -> Iterator[Engine]:
        """Yield each engine with its activations and state in memory; `changes` says whether its state changes."""
        for index, engine in enumerate(self._engines):
            path = self._parts.scratch(f"state-{index}.safetensors")
            engine.state = State.from_tensors(load_file(path, device=str(self.model.device)))
            engine.live.cache = self._parts[index]
            yield engine
            self._offload(index, changes)

    def _offload(self, index: int, changes: bool = True) -> None:
        engine = self._engines[index]
        if changes:
            # Write beside the old file, which may still be mapped. Clone: safetensors takes no views or shared memory.
            path = self._parts.scratch(f"state-{index}.safetensors")
            tensors = {name: x.contiguous().clone() for name, x in engine.state.tensors().items()}
            _save_file(tensors, path.with_suffix(".new"))
            path.with_suffix(".new").replace(path)
        engine.offload()


def _save_file(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path)
    except (OSError, SafetensorError) as error:  # safetensors wraps I/O errors in its own
        raise FileError(
            f"{path}: can't be written ({error}); prompts that don't fit into memory are kept there. Make room, set "
            "TMPDIR to a folder that has more, or give a larger --memory"
        ) from None
