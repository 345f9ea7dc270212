"""Large checkpoints: two bytes per weight, in several files, of which one at a time is in memory beside the model."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import transformers
import typer

from acdc.commands import run as run_command
from acdc.errors import INTERRUPTED, ModelError
from acdc.model import load
from acdc.model.checkpoint import FAMILIES, open_checkpoint
from acdc.model.huggingface import read_module, tensors_of, widened
from acdc.model.load import load_model
from acdc.setup.config import resolve
from acdc.setup.inputs import load as load_inputs
from tests.support.checkpoints import SMALL, of_family, tokenizer

NARROW = (torch.bfloat16, torch.float16)


def narrowed(name: str, dtype: torch.dtype, folder: Path) -> tuple[Path, Path]:
    """A checkpoint of two bytes per weight in shards, and the same numbers in float32 in one file."""
    module = of_family(name, folder / "wide").to(dtype)
    module.save_pretrained(folder / "narrow", max_shard_size="3KB")
    tokenizer(folder / "narrow")
    assert len(list((folder / "narrow").glob("*.safetensors"))) > 2
    module.float().save_pretrained(folder / "wide")
    return folder / "narrow", folder / "wide"


@pytest.mark.parametrize("wide", ["float32", "float64"])
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize(
    "name", ["gpt2", "gpt_neo, windows", "gpt_neox, parallel", "llama, grouped, tied", "qwen3, grouped"]
)
def test_weights_of_two_bytes_are_widened_and_then_folded(tmp_path, name, dtype, wide):
    narrow, expected = (load_model(str(folder), "cpu", wide) for folder in narrowed(name, dtype, tmp_path))
    for weight, tensor in expected.transformer.weights.items():
        found = narrow.transformer.weights[weight]
        # A bias that a norm's shift was folded into is a sum, in an order that depends on where the numbers lie.
        assert torch.equal(found, tensor) or (weight.endswith("bias") and (found - tensor).abs().max() < 1e-6), weight
    assert narrow.verification.spread == pytest.approx(expected.verification.spread, rel=1e-6)
    assert narrow.verification.difference < 1e-4 and narrow.verification.spread > 0.1


def test_a_module_computes_in_a_wider_dtype_than_its_weights_are_in(tmp_path):
    folder = narrowed("llama, grouped, tied", torch.bfloat16, tmp_path)[0]
    module = read_module(folder, open_checkpoint(str(folder)).config, torch.float32)
    tokens = torch.arange(6)[None]
    with torch.no_grad():
        rounded = module(tokens).logits
        with widened(module, torch.float32):
            found = module(tokens).logits
            assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
        assert torch.equal(found, module.float()(tokens).logits)
    assert (found - rounded).abs().max() > 1e-3


def test_a_constant_of_the_model_is_not_rounded(tmp_path):
    """Gemma multiplies its embedding by √width, which has no exact bfloat16."""
    sizes = {**SMALL, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    made = transformers.GemmaForCausalLM(transformers.GemmaConfig(**sizes))
    made.to(torch.bfloat16).save_pretrained(tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    wide = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    module = read_module(tmp_path, config, torch.float32)
    tokens = torch.arange(6)[None]
    with torch.no_grad(), widened(module, torch.float32):
        assert torch.equal(module(tokens).logits, wide(tokens).logits)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux says which files are mapped")
def test_small_tensors_do_not_hold_on_to_a_file(tmp_path):
    """They are used until the end, and a file would stay in memory with the last of its tensors."""
    folder = narrowed("gpt2", torch.bfloat16, tmp_path)[0]
    tensors = tensors_of(read_module(folder, open_checkpoint(str(folder)).config, torch.float32))
    assert str(folder) in Path("/proc/self/maps").read_text()
    for name in [name for name, tensor in tensors.items() if tensor.ndim > 1]:
        del tensors[name]
    assert tensors and str(folder) not in Path("/proc/self/maps").read_text()


def test_a_mistake_is_as_large_an_error_as_in_float32(tmp_path, monkeypatch):
    folder = narrowed("llama, grouped, tied", torch.bfloat16, tmp_path)[0]
    source = Path(str(FAMILIES["llama"].__file__)).read_text()
    broken = ModuleType("llama")
    changed = source.replace("d_mlp=", "norm_eps=3e-3, d_mlp=")
    assert changed != source
    exec(compile(changed, "llama", "exec"), broken.__dict__)
    monkeypatch.setitem(FAMILIES, "llama", broken)
    with pytest.raises(ModelError, match="the logits differ by up to"):
        load_model(str(folder), "cpu")


def test_weights_that_a_card_has_no_memory_for_are_refused(monkeypatch):
    monkeypatch.setattr(load, "pick_device", lambda _: torch.device("cuda:1"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1_000_000, 80_000_000_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 500_000)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 400_000)
    says = r"take 0\.\d GB in float32, and 0\.0 GB of cuda:1's memory are free; use another card, or --device cpu"
    with pytest.raises(ModelError, match=says):
        load_model("tiny", "cuda:1")
    assert load.free_memory(torch.device("cuda:1")) == 1_100_000


def test_what_takes_less_memory_is_said(monkeypatch):
    config, task, _ = resolve({"task": "ioi", "model": "tiny", "device": "cpu", "examples": 200}, None, None)
    inputs = load_inputs(config, task)
    needed = f"memory: about {inputs.expected_memory / 1e9:.1f} GB"
    assert inputs.memory_note(None) == inputs.memory_note(1e12) == needed
    less = r"fewer prompts \(--examples; with one it takes 0\.\d GB\)"
    assert re.fullmatch(rf"{needed}, more than --memory allows; .*: {less}, another machine", inputs.memory_note(1e7))
    monkeypatch.setattr("acdc.setup.inputs.free_memory", lambda _: 0)
    said = (
        rf"{needed}, more than the 0\.0 GB that there are; .*: {less}, prompts in parts \(--memory\), another machine"
    )
    assert re.fullmatch(said, inputs.memory_note(None))


def test_a_device_that_runs_out_of_memory_is_one_message(call, monkeypatch):
    def refuse(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 is full. Of it. More.")

    monkeypatch.setattr(run_command, "run_each", refuse)
    code, _, err = call("run", "--task", "or-gate", "--model", "or-gate")
    assert code == 2 and "acdc: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 is full. What takes less: " in err


def test_an_abort_by_the_user_is_no_lack_of_memory(call, monkeypatch):
    """Both are RuntimeErrors."""

    def abort(*_):
        raise typer.Abort

    monkeypatch.setattr(run_command, "run_each", abort)
    code, _, err = call("run", "--task", "or-gate", "--model", "or-gate")
    assert code == 130 and err.endswith(f"{INTERRUPTED}\n")


PEAK = """
import re, sys
from pathlib import Path
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
import transformers, acdc.setup.inputs
from acdc.model.load import load_model
load_model("tiny", "cpu")
before = peak()
model = load_model(sys.argv[1], "cpu")
print(before, peak(), sum(weight.nbytes for weight in model.transformer.weights.values()))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory counts other things elsewhere")
def test_a_model_is_loaded_in_its_own_memory_and_that_of_two_shards(tmp_path):
    """Of the shape of Llama 3.2 1B, with a quarter of its layers and half of its vocabulary: 2.1 GB in float32."""
    size = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 4, "vocab_size": 64_000}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 512}
    config = transformers.LlamaConfig(**size, **heads, tie_word_embeddings=True, dtype="bfloat16")
    torch.manual_seed(0)
    module = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    module.save_pretrained(tmp_path, max_shard_size="270MB")
    del module
    tokenizer(tmp_path)
    sizes = [path.stat().st_size for path in tmp_path.glob("*.safetensors")]
    assert len(sizes) == 3
    done = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path)], check=True, capture_output=True, text=True)
    before, peak, weights = map(int, done.stdout.split())
    assert weights > 2e9
    assert peak - before < weights + 2 * max(sizes)
