"""Checkpoints in Hugging Face's layout, read by transformers: no code of theirs is run, and no pickle read."""

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from acdc.errors import ModelError, short
from acdc.model.find import read_json, reading
from acdc.model.hub import ADAPTER, INDEX, WEIGHTS
from acdc.model.tokenizer import Tokenizer

LOCAL = {"trust_remote_code": False, "local_files_only": True}
FLOATS = {  # by safetensors' names
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip
MASKS = re.compile(r"(attn|attention)\.(masked_)?bias$")  # in old checkpoints; no weights
FACTORS = re.compile(r"\.(embed_scale|((full|sliding)_attention_)?inv_freq)$")  # buffers that logits depend on
MOST_BUFFERS = 1_000_000_000  # bytes; GPT-Neo with 2.7 billion weights has 134,000,000
LORA = (  # keys of an adapter's config that may have any value
    "base_model_name_or_path", "revision", "peft_type", "task_type", "peft_version", "auto_mapping", "inference_mode",
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "fan_in_fan_out", "bias", "lora_bias",
    "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save",
)  # fmt: skip
TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))


@contextmanager
def transformers(path: Path, what: str) -> Iterator[Any]:
    """The library, without its bars, warnings and log; what it raises becomes a ModelError about the file."""
    import transformers
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    bar = logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with reading(path, what), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield transformers
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def open_directory(
    directory: Path, name: str, raw: dict[str, Any]
) -> tuple[Any, Tokenizer, tuple[Path, ...], Callable[[torch.dtype], Any]]:
    """The config, the tokenizer, the files with weights, and what reads these (`Checkpoint`)."""
    with transformers(directory / "config.json", "config") as library:
        config = library.AutoConfig.from_pretrained(directory, **LOCAL)
    return config, read_tokenizer(directory, name), weight_files(directory), partial(read_module, directory, config)


def read_tokenizer(directory: Path, name: str) -> Tokenizer:
    """The tokenizer of a checkpoint."""
    if not any(all((directory / file).is_file() for file in files) for files in TOKENIZERS):
        needed = "tokenizer.json, tokenizer.model, or vocab.json and merges.txt"
        raise ModelError(f"{directory}: no tokenizer; it needs {needed}, beside the weights")
    with transformers(directory, "tokenizer") as library:
        return wrapped(library.AutoTokenizer.from_pretrained(directory, **LOCAL), name)


def wrapped(tokenizer: Any, name: str) -> Tokenizer:
    """A tokenizer of transformers as ours, which uses and changes its backend."""
    own = tokenizer.unk_token_id not in (tokenizer.bos_token_id, tokenizer.eos_token_id)  # GPT-2's is the end of a text
    return Tokenizer(tokenizer.backend_tokenizer, name, tokenizer.bos_token_id, tokenizer.unk_token_id if own else None)


def weight_files(directory: Path) -> tuple[Path, ...]:
    """The files that transformers reads weights from; raise ModelError if there are none."""
    whole = directory / WEIGHTS
    index = directory / INDEX
    if whole.is_file():
        return (whole,)
    if index.is_file():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise ModelError(f"{index}: has no weight_map that names the file of each tensor")
        with reading(index, "index"):
            for name in shards.values():
                if Path(name).name != name or not (directory / name).is_file():
                    raise ModelError(f"{index}: names {name}, which doesn't exist beside it")
            return tuple(directory / name for name in sorted(set(shards.values())))
    if list(directory.glob("*.bin")):
        how = "load the model with transformers, and save_pretrained(...) writes safetensors"
        raise ModelError(f"{directory}: only pickled weights (*.bin), which can run code. Convert them: {how}")
    raise ModelError(f"{directory}: no weights; expected {WEIGHTS}")


def read_module(directory: Path, config: Any, dtype: torch.dtype) -> Any:
    """The model in evaluation mode on the CPU, its weights in the dtype of the files or in `dtype`, whichever has fewer
    bits: as long as nobody uses them, such weights are only mapped from the files.

    Raises ModelError unless the files have its tensors and no others.
    """
    if dtype == torch.float64 and getattr(config, "reorder_and_upcast_attn", False):
        config.reorder_and_upcast_attn = False  # of GPT-2: scores in float32, which transformers then can't use
    stored = stored_dtype(directory)
    if torch.promote_types(stored, dtype) != dtype:
        stored = dtype
    with transformers(directory, "checkpoint") as library:
        for of in (stored, dtype):
            module, found = library.AutoModelForCausalLM.from_pretrained(
                directory,
                config=config,
                dtype=of,
                attn_implementation="eager",
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # they are refused below
                output_loading_info=True,
                **LOCAL,
            )
            if of == dtype or not any(buffer.dtype == of for buffer in module.buffers()):
                break  # else a constant of the model was rounded
    for name, shape, wanted in sorted(found["mismatched_keys"]):
        raise ModelError(f"{directory}: tensor {name!r} has shape {tuple(shape)}, not {tuple(wanted)}")
    unexpected = [name for name in found["unexpected_keys"] if not MASKS.search(name)]
    for names, what in ((found["missing_keys"], "is missing"), (unexpected, "has no place in a model of this family")):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            name = min(names)
            raise ModelError(f"{directory}: tensor {name!r} {what}{more}; without it another model would be computed")
    return module.eval()


def stored_dtype(directory: Path) -> torch.dtype:
    """The narrowest dtype that holds all weights of a checkpoint exactly."""
    from safetensors import safe_open

    found = set()
    for file in weight_files(directory):
        with reading(file, "safetensors file"), safe_open(file, "pt") as tensors:
            found |= {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    return reduce(torch.promote_types, (FLOATS[dtype] for dtype in found if dtype in FLOATS))


@contextmanager
def widened(module: Any, dtype: torch.dtype) -> Iterator[None]:
    """Let every part of a module have its weights in a wider dtype while it computes, and only then: the results are
    those of the whole module in that dtype, without its memory."""
    stored: dict[Tensor, Tensor] = {}

    def widen(part: Any, *_: Any) -> None:
        for weight in part.parameters(recurse=False):
            stored[weight] = weight.data
            weight.data = weight.data.to(dtype)

    def narrow(part: Any, *_: Any) -> None:
        for weight in part.parameters(recurse=False):
            weight.data = stored.pop(weight)

    hooks = []
    for part in module.modules():
        if any(weight.dtype != dtype for weight in part.parameters(recurse=False)):
            hooks += [part.register_forward_pre_hook(widen), part.register_forward_hook(narrow)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def described(path: Path, config: Any) -> Any:
    """The module that a config describes, without memory for its weights; raise ModelError if it describes none."""
    with transformers(path, "config") as library, torch.device("meta"):
        return library.AutoModelForCausalLM.from_config(config, attn_implementation="eager")


def check_size(directory: Path, config: Any) -> None:
    """Raise ModelError if the files are no weights, or fewer than the config describes, before memory is taken."""
    from safetensors import safe_open

    held = 0
    names = 0
    for file in weight_files(directory):
        with reading(file, "safetensors file"), safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                part = tensors.get_slice(name)
                if part.get_dtype() not in FLOATS and not MASKS.search(name):
                    what = f"tensor {name!r} holds {part.get_dtype()}; weights should be floating-point numbers"
                    raise ModelError(f"{file}: {what}")
                held += torch.Size(part.get_shape()).numel()
                names += 1
    with reading(directory, "config"):
        layers = config.num_hidden_layers
        if layers > names:
            raise ModelError(f"{directory}: config.json describes {layers:,} layers; the files hold {names:,} tensors")
    module = described(directory, config)
    n_weights = sum(p.numel() for p in module.parameters())
    if n_weights > 2 * held:  # otherwise the tensors that are missing are named
        raise ModelError(f"{directory}: config.json describes {n_weights:,} weights; the files hold {held:,}")
    if (beside := sum(b.nbytes for b in module.buffers())) > MOST_BUFFERS:
        raise ModelError(f"{directory}: config.json describes {beside:,} bytes of masks; no model has so many")


def adapted(read: Callable[[torch.dtype], Any], adapter: Path, raw: dict[str, Any], dtype: torch.dtype) -> Any:
    """The module of a LoRA adapter's base with the adapter beside its weights, which `tensors_of` adds to them.

    Raises ModelError unless the adapter's files say what is added to which weight, and no more.
    """
    where = adapter / ADAPTER[0]
    weights = adapter / ADAPTER[1]
    with transformers(weights, "LoRA adapter"):
        from peft import LoraConfig, PeftModel, get_peft_model_state_dict
        from safetensors import safe_open

        usual = LoraConfig().to_dict()
        for key, value in raw.items():
            if key not in LORA and value and value != usual.get(key):
                raise ModelError(f"{where}: {key} is {short(value)}; adapters with it are not supported")
        with safe_open(weights, "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        most = max((size for shape in shapes.values() for size in shape), default=0)
        for rank in (raw.get("r"), *(raw.get("rank_pattern") or {}).values()):  # memory is taken for it
            if not isinstance(rank, int) or not 0 < rank <= most:
                raise ModelError(f"{where}: rank {short(rank)}, but no tensor of {weights.name} has this size")
        module = PeftModel.from_pretrained(read(dtype).to(dtype), adapter, torch_device="cpu")
        needed = get_peft_model_state_dict(module, save_embedding_layers=False)
    for name in sorted(needed.keys() ^ shapes):
        raise ModelError(f"{weights}: tensor {name!r} {'has no place in the base' if name in shapes else 'is missing'}")
    return module.eval()


def tensors_of(module: Any) -> dict[str, Tensor]:
    """All parameters by name, a tied head too, the frequencies and factors of rotary embeddings, and the factors of
    embeddings. The module is left without weights, so that each is freed as it is used; small ones are copied, since
    they would hold on to a file."""
    if hasattr(module, "merge_and_unload"):
        module = module.merge_and_unload()
    plain = {weight: weight.detach() if weight.ndim > 1 else weight.detach().clone() for weight in module.parameters()}
    out = {name: plain[weight] for name, weight in module.named_parameters(remove_duplicate=False)}
    out |= {name: tensor for name, tensor in module.named_buffers() if FACTORS.search(name)}
    for name, part in module.named_modules():
        for key, value in vars(part).items():
            if key.endswith("attention_scaling"):
                out[f"{name}.{key}"] = torch.tensor(value, dtype=torch.float64)
    module.to("meta")
    return out
