"""Which matrix products a discovery makes, and where its time goes, operation by operation."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from acdc.methods.log import Decision, Journal
from acdc.model.transformer import Transformer
from acdc.patching.engine import Engine, Removal

Shape = tuple[Any, ...]  # (name of the product, (shape, strides) of each operand)

OUTPUT, GUESS, MLPS, HEADS, REST = "output layer", "guess", "MLPs", "heads", "bookkeeping"
# Where no weight tells what an operation is for, the function of the package that called it does.
FUNCTIONS = {
    "logsumexp": OUTPUT,
    "centred_logits": OUTPUT,
    "expected_unembedding": OUTPUT,
    "logits": OUTPUT,
    "mlp": MLPS,
    "project": HEADS,
    "attend": HEADS,
    "write": HEADS,
}


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@dataclass
class Products:
    """Matrix products by shape: how often (a fraction, where only a part was needed), operations, seconds in place."""

    count: dict[tuple[str, Shape], float] = field(default_factory=lambda: defaultdict(float))
    flops: dict[tuple[str, Shape], float] = field(default_factory=lambda: defaultdict(float))
    seconds: dict[tuple[str, Shape], float] = field(default_factory=lambda: defaultdict(float))

    def add(self, phase: str, shape: Shape, count: float, flops: float, seconds: float) -> None:
        key = phase, shape
        self.count[key] += count
        self.flops[key] += flops
        self.seconds[key] += seconds

    def take(self, other: Products, share: Callable[[str], float]) -> None:
        """Add a share, by phase, of other products."""
        for key, count in other.count.items():
            part = share(key[0])
            self.add(*key, part * count, part * other.flops[key], part * other.seconds[key])

    def by_phase(self, table: str) -> dict[str, float]:
        out: dict[str, float] = defaultdict(float)
        for (phase, _), value in getattr(self, table).items():
            out[phase] += value
        return dict(out)


class Recorder(TorchDispatchMode):
    """Times every operation and sorts it by phase; products are kept by shape, too."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.storages = {}
        for name, w in model.weights.items():
            part = name.rsplit(".", 2)[-2]
            phase = OUTPUT if part == "unembed" else MLPS if part.startswith("mlp") else HEADS if part in "qkvo" else ""
            if phase:
                self.storages[w.untyped_storage().data_ptr()] = phase
        self.recent = Products()  # since the last decisions
        self.seconds: dict[str, float] = defaultdict(float)  # phase → seconds of operations other than products
        self.functions: dict[str, float] = defaultdict(float)  # function → seconds of the operations it calls
        self.calls = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        flops = _flops_of(func)
        if flops is None:
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        synchronise()
        started = time.perf_counter()
        out = func(*args, **kwargs)
        synchronise()
        seconds = time.perf_counter() - started
        self.calls += 1
        function, phase = self._caller()
        tensors = [a for a in args if isinstance(a, Tensor)]
        phase = next((p for a in tensors if (p := self.storages.get(a.untyped_storage().data_ptr()))), phase)
        self.functions[function] += seconds
        if flops is None:
            self.seconds[phase] += seconds
        else:
            shape = (_base(func), *((tuple(a.shape), a.stride()) for a in tensors))
            self.recent.add(phase, shape, 1, float(flops(*args, **kwargs, out_val=out)), seconds)
        return out

    @staticmethod
    def _caller() -> tuple[str, str]:
        """The function of the package that called the operation, and the phase that it or one above it belongs to."""
        frame, first = sys._getframe(2), ""
        while frame is not None:
            if "/acdc/" in frame.f_code.co_filename.replace("\\", "/"):
                name = frame.f_code.co_name
                first = first or ("" if name.startswith("<") else name)  # not a comprehension or a lambda
                if frame.f_code.co_filename.endswith("metrics.py"):
                    return first, GUESS if name == "logsumexp" else OUTPUT
                if name in FUNCTIONS:
                    return first, FUNCTIONS[name]
            frame = frame.f_back
        return first or "(outside)", REST


class Launches(TorchDispatchMode):
    """Counts the operations that compute or copy: on a GPU, each is about one launch of a kernel."""

    count = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        with self:
            out = func.decompose(*args, **kwargs)
        if out is NotImplemented:
            self.count += not (func.is_view or _base(func).startswith(("empty", "detach", "resize")))
            out = func(*args, **kwargs)
        return out


def kernels(work: Callable[[], Any]) -> int:
    """How many kernels a GPU is given by some work, as its profiler counts them."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        work()
        synchronise()
    on_device = (e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA)
    return sum(not event.name.startswith(("Memcpy", "Memset")) for event in on_device)


def _base(func: Any) -> str:
    return str(func._overloadpacket).removeprefix("aten.").rstrip("_")


def _flops_of(func: Any) -> Callable[..., int] | None:
    found = flop_registry.get(func._overloadpacket)
    return found or flop_registry.get(getattr(torch.ops.aten, _base(func), None))


class Watch(Journal):
    """A journal that counts, batch by batch, how many evaluations the decisions needed: those that change something.

    `then` is called after each batch with the share of its candidates, and of its evaluated metrics, that was needed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.engine: WatchedEngine | None = None
        self.before = self.needed = 0
        self.asked: list[int] = []
        self.then: Callable[[float, float], None] = lambda nodes, output: None

    def write(self, batch: Sequence[Decision]) -> None:
        super().write(batch)
        if self.engine is None:
            return
        used, n = sum(d.change != 0 for d in batch), self.engine.asked
        evaluations = self.engine.evaluations - self.before
        self.needed += used
        if n:
            self.asked.append(n)
        self.then(min(1.0, used / max(n, 1)), min(1.0, used / max(evaluations, 1)))
        self.before, self.engine.asked = self.engine.evaluations, 0


class WatchedEngine(Engine):
    """An engine that counts the candidates it carries through the nodes."""

    asked = 0

    def rows(self, removals: Sequence[Removal], none: bool) -> Tensor:
        self.asked += len(removals)
        return super().rows(removals, none)


def replay(products: Products, seconds: float, dtype: torch.dtype, device: torch.device) -> dict[str, float]:
    """Seconds by phase that the products alone take: the most expensive shapes are made again with random operands
    until `seconds` are spent, the others count with the speed measured so far in their phase.
    """
    begun = time.perf_counter()
    out: dict[str, float] = defaultdict(float)
    left: list[tuple[str, Shape]] = []
    flops: dict[str, float] = defaultdict(float)
    for key in sorted(products.flops, key=lambda k: -products.flops[k]):
        if time.perf_counter() - begun > seconds:
            left.append(key)
            continue
        phase, (name, *shapes) = key
        operands = [_operand(*s, dtype, device) for s in shapes]
        once = shortest(lambda: getattr(torch.ops.aten, name)(*operands))  # noqa: B023
        out[phase] += products.count[key] * once
        flops[phase] += products.flops[key]
    for phase, shape in left:
        spent, done = (out[phase], flops[phase]) if flops[phase] else (sum(out.values()), sum(flops.values()))
        out[phase] += products.flops[phase, shape] * spent / max(done, 1.0)
        flops[phase] += products.flops[phase, shape]
    return dict(out)


def _operand(shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if any(st == 0 and n > 1 for n, st in zip(shape, stride, strict=True)):
        return torch.randn(shape, dtype=dtype, device=device)
    order = sorted(range(len(shape)), key=lambda i: (-stride[i], -shape[i]))  # dense, with the axes in the same order
    x = torch.randn([shape[i] for i in order], dtype=dtype, device=device)
    return x.permute([order.index(i) for i in range(len(shape))])


def shortest(f: Callable[[], Any], budget: float = 0.05, least: int = 3) -> float:
    """Seconds of the fastest of some calls: what the machine can do when nobody disturbs it."""
    best, begun, n = float("inf"), time.perf_counter(), 0
    while n < least or time.perf_counter() - begun < budget:
        synchronise()
        started = time.perf_counter()
        f()
        synchronise()
        best, n = min(best, time.perf_counter() - started), n + 1
    return best
