"""Load a model onto a device, and compare its logits with those of transformers."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

from acdc.errors import ModelError
from acdc.model import huggingface
from acdc.model.checkpoint import FAMILIES, Checkpoint, open_checkpoint
from acdc.model.tokenizer import Tokenizer
from acdc.model.transformer import Transformer
from acdc.model.weights import Weights
from acdc.task.tokenize import Split

DTYPES = {"float32": torch.float32, "float64": torch.float64}
TOLERANCE = 1e-3  # largest difference between logits, in standard deviations of the logits
N_PROMPTS = 4  # prompts that are compared
N_RANDOM = 64  # random tokens that are compared where no prompts are known yet


@dataclass(frozen=True)
class Verification:
    """How far the logits are from transformers': `difference` the largest one, `spread` their standard deviation."""

    difference: float  # logits
    spread: float  # logits
    n_prompts: int


@dataclass(frozen=True)
class Model:
    """A loaded model: `hash` as `Checkpoint.hash`; bundled models are not verified when they are loaded."""

    checkpoint: Checkpoint
    hash: str
    transformer: Transformer
    verification: Verification | None

    @property
    def name(self) -> str:
        """The name that the model was loaded by."""
        return self.checkpoint.name

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer."""
        return self.checkpoint.tokenizer


def load_model(of: str | Checkpoint, device: str = "auto", dtype: str = "float32", *splits: Split) -> Model:
    """Load a model onto a device, for prompts if they are known.

    Raises ModelError if it can't be found, read or represented, the prompts don't fit, or its logits are not those that
    transformers computes with the same checkpoint.
    """
    checkpoint = open_checkpoint(of) if isinstance(of, str) else of
    checkpoint.check_fits(*splits)
    to = place(checkpoint, device, dtype)
    prompts = _prompts(checkpoint, splits)
    where = str(checkpoint.path)
    wide = DTYPES[dtype]
    with ThreadPoolExecutor(1) as beside, torch.no_grad():  # hashing and torch both release the GIL
        read = checkpoint.read(wide)
        expected = None
        if not isinstance(read, dict):
            with huggingface.transformers(checkpoint.path, "checkpoint"):
                read = read.to(to)  # one tensor at a time; a file is closed with its last one
                with huggingface.widened(read, wide):
                    expected = [read(prompt[None].to(to), return_dict=True).logits[0].cpu() for prompt in prompts]
                read = huggingface.tensors_of(read)
        weights = Weights(read, checkpoint.sizes, where, wide)
        FAMILIES[checkpoint.family].read(checkpoint.config, weights)
        digest = beside.submit(checkpoint.hash)  # not before all tensors have a place: files can be very long
        moved = {name: weights.out.pop(name).to(to, wide) for name in list(weights.out)}
        transformer = Transformer(checkpoint.sizes, moved, where, own=True)
        for layer, (scale, shift) in weights.mlp_norms.items():
            transformer.mlp_norms[layer] = (scale.to(to, wide), shift.to(to, wide))
        verification = _verify(transformer, prompts, expected, where) if expected else None
        hashed = digest.result()
    return Model(checkpoint, hashed, transformer, verification)


def _prompts(checkpoint: Checkpoint, splits: tuple[Split, ...]) -> list[Tensor]:
    """Clean prompts without their padding, each Int[pos], or random tokens."""
    if splits:
        split = splits[0]
        first = zip(split.clean[:N_PROMPTS], split.pad, strict=False)
        return [torch.from_numpy(tokens[pad:].copy()) for tokens, pad in first]
    c = checkpoint.sizes
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(c.vocab_size, (min(N_RANDOM, c.n_positions),), generator=generator)]


def _verify(transformer: Transformer, prompts: list[Tensor], expected: list[Tensor], where: str) -> Verification:
    """Compare the logits with the expected ones, Float[pos vocab] for each prompt; raise ModelError if they differ."""
    theirs = torch.cat(expected)
    mine = []
    for prompt in prompts:
        tokens = prompt[None].to(transformer.device)
        stream = transformer.run(tokens, torch.zeros(1, dtype=torch.int64, device=transformer.device))[1]
        mine.append(transformer.logits(transformer.normalise(stream[-1, 0])).cpu())
    found = Verification(float((torch.cat(mine) - theirs).abs().max()), float(theirs.std()), len(prompts))
    if torch.isfinite(theirs).all() and not found.difference <= TOLERANCE * found.spread:
        figures = f"by up to {found.difference:.3g} from those of transformers, whose spread is {found.spread:.3g}"
        would = f"acdc would compute another model (allowed: {TOLERANCE:g} of it)"
        raise ModelError(f"{where}: the logits differ {figures}; {would}")
    return found


def place(checkpoint: Checkpoint, device: str, dtype: str) -> torch.device:
    """The device for a model; raise ModelError if there is none such, or too little memory for the weights alone."""
    to = pick_device(device)
    if to.type == "mps" and dtype == "float64":
        raise ModelError("--dtype float64: MPS has no float64; use --device cpu or --dtype float32")
    needed = checkpoint.sizes.n_weights * DTYPES[dtype].itemsize
    free = free_memory(to)
    if needed > free:
        memory = f"{to}'s memory" if to.type == "cuda" else "memory"
        sizes = f"take {needed / 1e9:,.1f} GB in {dtype}, and {free / 1e9:,.1f} GB of {memory} are free"
        instead = "; use another card, or --device cpu" if to.type == "cuda" else ""
        raise ModelError(f"--model {checkpoint.name}: its {checkpoint.sizes.n_weights:,} weights {sizes}{instead}")
    return to


def free_memory(device: torch.device) -> int:
    """Bytes that are free: of a CUDA device's memory, else of the machine's, with what could be swapped out."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return psutil.virtual_memory().available + psutil.swap_memory().free


def pick_device(device: str) -> torch.device:
    """`auto` is CUDA, else MPS, else the CPU."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    known = [kind for kind in there if there[kind]]
    if device == "auto":
        device = known[0]
    if not there.get(device.partition(":")[0]):
        raise ModelError(f"--device {device}: not on this machine, or not in this PyTorch; it has {', '.join(known)}")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"--device {device}: {str(error).splitlines()[0]}. Try auto, cpu, cuda or mps") from None
