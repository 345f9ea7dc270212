"""Transcoders: their files, what is refused, and encoders that read what a norm of Hugging Face's gives."""

from __future__ import annotations

import json
import os
import re

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from acdc.errors import UserError
from acdc.model.load import load_model
from acdc.model.transcoders import find_transcoders, folded, read_transcoders
from tests.recipes.train_transcoders import CARD, TASKS, unseen
from tests.support.checkpoints import checkpoint, of_family
from tests.support.random_models import random_model

D = 8  # width
F = 5  # features
RELU = {"feature_input_hook": "hook_resid_mid", "feature_output_hook": "hook_mlp_out", "model_name": "x"}
TOPK = {**RELU, "activation": "topk", "k": 2}
JUMP = {"activation_function.threshold": torch.tensor([0.1, 0.5, 1.0, 0.0, 0.2])}
SINGLE = {
    "architecture": "transcoder", "d_in": D, "apply_b_dec_to_input": False, "normalize_activations": "none",
    "metadata": {"hook_name": "blocks.1.hook_resid_mid", "hook_name_out": "blocks.1.hook_mlp_out"},
}  # fmt: skip


def encode(transcoder, x):
    """The activations of all features, Float[... feature], from what the encoder reads."""
    before = x @ transcoder.encoder + transcoder.bias
    if transcoder.threshold is not None:
        return before * (before > transcoder.threshold)
    after = before.relu()
    if not transcoder.top:
        return after
    largest = after.topk(transcoder.top)
    return torch.zeros_like(after).scatter(-1, largest.indices, largest.values)


def tensors(seed=0, rows=True, d=D, **more):
    """Random ones; `rows` as circuit-tracer stores the encoder."""
    g = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (F, d) if rows else (d, F), "W_dec": (F, d), "b_enc": (F,), "b_dec": (d,)}
    return {name: torch.randn(shape, generator=g) for name, shape in shapes.items()} | more


def tracer(folder, config=RELU, **layers):
    """A folder as circuit-tracer writes it: file stem → tensors."""
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    for stem, held in layers.items():
        save_file(held, folder / f"{stem}.safetensors")
    return folder


def lens(folder, held, **changes):
    """A folder as SAELens writes it for one transcoder. Changes of metadata are named `metadata__key`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads(json.dumps(SINGLE))
    for key, value in changes.items():
        (config["metadata"] if key.startswith("metadata__") else config)[key.removeprefix("metadata__")] = value
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file(held, folder / "sae_weights.safetensors")
    return folder


def sizes(**changes):
    return random_model(0, **changes).config


def plain(x, held, activation, k=0, threshold=None):
    """The activations of the features one by one: x Float[d_model], W_enc Float[feature d_model]."""
    before = [float(w @ x + b) for w, b in zip(held["W_enc"], held["b_enc"], strict=True)]
    if activation == "jumprelu":
        return [v if v > float(t) else 0.0 for v, t in zip(before, threshold, strict=True)]
    kept = sorted(range(len(before)), key=lambda i: -before[i])[: k or None]
    return [max(v, 0.0) if i in kept else 0.0 for i, v in enumerate(before)]


# ---------------------------------------------------------------- what is read


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("activation", ["relu", "topk", "jumprelu"])
@pytest.mark.parametrize("layout", ["circuit-tracer", "SAELens"])
def test_features_have_the_activations_that_a_plain_loop_gives(tmp_path, layout, activation, skip):
    held = tensors(1, W_skip=torch.ones(D, D)) if skip else tensors(1)
    threshold = JUMP["activation_function.threshold"]
    if layout == "circuit-tracer":
        more = JUMP if activation == "jumprelu" else {}
        folder = tracer(tmp_path / "t", TOPK if activation == "topk" else RELU, layer_1=held | more)
    else:
        more = {"threshold": threshold} if activation == "jumprelu" else {}
        kind = "jumprelu_" * bool(more) + "skip_" * skip + "transcoder"
        changes = {"activation_fn": "topk", "activation_fn_kwargs": {"k": 2}} if activation == "topk" else {}
        stored = {**held, "W_enc": held["W_enc"].T.contiguous(), **more}
        folder = lens(tmp_path / "t" / "layer_1", stored, architecture=kind, **changes).parent
    found = read_transcoders(folder, sizes())
    assert list(found) == [1]
    assert found[1].reads == "stream"
    torch.testing.assert_close(found[1].decoder, held["W_dec"])
    x = torch.randn(7, D, generator=torch.Generator().manual_seed(2))
    expected = torch.tensor([plain(row, held, activation, 2 * (activation == "topk"), threshold) for row in x])
    assert 0 < (expected > 0).float().mean() < 1
    torch.testing.assert_close(encode(found[1], x), expected)


def test_the_order_of_layers_and_a_single_folder(tmp_path):
    folder = tracer(tmp_path / "t", layer_1=tensors(1), layer_0=tensors(0))
    assert list(read_transcoders(folder, sizes())) == [0, 1]
    assert list(read_transcoders(lens(tmp_path / "s", tensors(rows=False)), sizes())) == [1]


def test_older_configs_of_saelens_have_their_metadata_beside_the_rest(tmp_path):
    folder = lens(
        tmp_path / "s", tensors(rows=False), metadata=None, **SINGLE["metadata"], activation_fn_str="topk", k=2
    )
    assert read_transcoders(folder, sizes())[1].top == 2


def test_thresholds_below_zero_are_zero_where_a_relu_stands_before_them(tmp_path):
    threshold = torch.tensor([-1.0, 0.5, 1.0, 0.0, 0.2])
    folder = lens(tmp_path / "s", tensors(rows=False, threshold=threshold), architecture="jumprelu_transcoder")
    assert read_transcoders(folder, sizes())[1].threshold.tolist() == threshold.clamp(min=0).tolist()


def test_narrow_tensors_are_widened_when_they_are_folded(tmp_path):
    held = {name: tensor.bfloat16() for name, tensor in tensors().items()}
    found = read_transcoders(tracer(tmp_path / "t", layer_0=held), sizes())[0]
    assert found.encoder.dtype == torch.bfloat16
    there = folded(found, random_model(0), 0)
    assert there.encoder.dtype == there.bias.dtype == there.decoder.dtype == torch.float64
    assert torch.equal(there.encoder, held["W_enc"].T.double())


READS = {
    # hook: (a layer norm, one folded by TransformerLens, an RMS norm, no norm before the MLP)
    "hook_resid_mid": ("stream", "stream", "stream", "stream"),
    "hook_mlp_in": ("stream", "stream", "stream", "stream"),
    "ln2.hook_normalized": ("norm", "normalised", "normalised", None),
    "mlp.hook_in": ("norm", "normalised", "norm", "stream"),
}


@pytest.mark.parametrize("hook", READS)
def test_what_hooks_mean_depends_on_the_norm(tmp_path, hook):
    kinds = [{}, {}, {"norm": "rms"}, {"norm": "rms", "pre_norm": False}]
    for i, (kind, reads) in enumerate(zip(kinds, READS[hook], strict=True)):
        kwargs = {"fold_ln": True} if i == 1 else None
        named = {"metadata__hook_name": f"blocks.0.{hook}", "metadata__hook_name_out": "blocks.0.mlp.hook_out"}
        folder = lens(
            tmp_path / str(i), tensors(rows=False), **named, metadata__model_from_pretrained_kwargs=kwargs
        )  # fmt: skip
        if reads is None:
            with pytest.raises(UserError, match=re.escape(f"{hook!r} is read, but")):
                read_transcoders(folder, sizes(**kind))
        else:
            assert read_transcoders(folder, sizes(**kind))[0].reads == reads


def test_a_parallel_block_reads_the_stream_before_the_layer(tmp_path):
    config = {**RELU, "feature_input_hook": "hook_resid_pre"}
    folder = tracer(tmp_path / "t", config, layer_0=tensors())
    assert read_transcoders(folder, sizes(parallel=True))[0].reads == "stream"
    with pytest.raises(
        UserError, match="'hook_resid_pre' is read, but what is read by this model's MLPs is hook_resid_mid"
    ):
        read_transcoders(folder, sizes())


def test_an_encoder_of_a_centred_stream_reads_any_stream_alike(tmp_path):
    kwargs = {"center_writing_weights": True}
    held = tensors(rows=False)
    folder = lens(tmp_path / "s", held, metadata__model_from_pretrained_kwargs=kwargs)
    found = read_transcoders(folder, sizes())[1]
    x = torch.randn(4, D)
    centred = x - x.mean(1, keepdim=True)
    torch.testing.assert_close(encode(found, x), (centred @ held["W_enc"] + held["b_enc"]).relu())


def norms_of(theirs, name):
    """Hugging Face's norms before the MLPs."""
    if name == "gpt2":
        return [block.ln_2 for block in theirs.transformer.h]
    if name.startswith("gpt_neox"):
        return [block.post_attention_layernorm for block in theirs.gpt_neox.layers]
    if name.startswith("gemma"):
        return [block.pre_feedforward_layernorm for block in theirs.model.layers]
    return [block.post_attention_layernorm for block in theirs.model.layers]


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox, parallel", "llama", "gemma2, soft caps"])
def test_folded_encoders_read_what_the_norms_of_transformers_give(tmp_path, name):
    theirs = checkpoint(tmp_path) if name == "gpt2" else of_family(name, tmp_path)
    model = load_model(str(tmp_path), "cpu", "float64").transformer
    d = model.config.d_model
    x = torch.randn(6, d, generator=torch.Generator().manual_seed(3))
    config = {**RELU, "feature_input_hook": "mlp.hook_in"}
    held = {f"layer_{layer}": tensors(layer, d=d) for layer in range(2)}
    found = read_transcoders(tracer(tmp_path / "t", config, **held), model.config)
    for layer, norm in enumerate(norms_of(theirs, name)):
        assert found[layer].reads == "norm"
        there = folded(found[layer], model, layer)
        assert there.reads == "normalised"
        tensor = held[f"layer_{layer}"]
        with torch.no_grad():
            expected = (norm(x) @ tensor["W_enc"].T + tensor["b_enc"]).relu()
        torch.testing.assert_close(encode(there, model.normalise(x.double())).float(), expected, rtol=1e-4, atol=1e-4)


def test_a_model_whose_norms_are_not_known_is_refused(tmp_path):
    config = {**RELU, "feature_input_hook": "mlp.hook_in"}
    found = read_transcoders(tracer(tmp_path / "t", config, layer_0=tensors()), sizes())[0]
    with pytest.raises(UserError, match="transcoder of layer 0 doesn't fit the model: it reads the MLP's norm"):
        folded(found, random_model(0), 0)


# ---------------------------------------------------------------- what is refused

WRONG_TRACER = {
    "another width": (RELU, {"layer_0": tensors(d=6)}, "'W_enc' has shape (5, 6), not (5, 8)"),
    "a layer too many": (RELU, {"layer_2": tensors()}, "is for layer 2, but the model has MLPs in 2 layers"),
    "the same layer twice": (RELU, {"layer_1": tensors(), "layer_01": tensors()}, "second transcoder of layer 1"),
    "no layer": (RELU, {"layer_x": tensors()}, "names no layer"),
    "another input": ({**RELU, "feature_input_hook": "hook_resid_pre"}, {"layer_0": tensors()}, "'hook_resid_pre' is"),
    "another output": ({**RELU, "feature_output_hook": "hook_attn_out"}, {"layer_0": tensors()}, "'hook_attn_out' is"),
    "no hook": ({"feature_input_hook": "hook_resid_mid"}, {"layer_0": tensors()}, "feature_output_hook: is missing"),
    "topk without k": ({**TOPK, "k": None}, {"layer_0": tensors()}, "k is None; of topk it should be a whole number"),
    "k of 0": ({**TOPK, "k": 0}, {"layer_0": tensors()}, "k is 0; of topk"),
    "k of 6": ({**TOPK, "k": 6}, {"layer_0": tensors()}, "k is 6; of topk it should be a whole number from 1 to 5"),
    "k of 2.5": ({**TOPK, "k": 2.5}, {"layer_0": tensors()}, "k: "),
    "another activation": ({**RELU, "activation": "gelu"}, {"layer_0": tensors()}, "activation: should be 'relu'"),
    "across layers": ({**RELU, "model_kind": "cross_layer_transcoder"}, {"layer_0": tensors()}, "model_kind: should"),
    "no decoder": (RELU, {"layer_0": {**tensors(), "W_dec": torch.ones(F, 2)}}, "'W_dec' has shape (5, 2), not (5, 8)"),
    "a missing tensor": (RELU, {"layer_0": {"W_enc": torch.ones(F, D)}}, "'W_dec' is missing"),
    "no thresholds": ({**RELU, "activation": "jump_relu"}, {"layer_0": tensors()}, "threshold' is missing"),
    "thresholds of relu": ({**RELU, "activation": "relu"}, {"layer_0": tensors() | JUMP}, "has no place in a"),
    "a tensor of another kind": (RELU, {"layer_0": tensors(log_thresholds=torch.ones(F))}, "'log_thresholds' has no"),
    "NaN": (RELU, {"layer_0": tensors(b_enc=torch.full((F,), torch.nan))}, "'b_enc' should hold finite"),
    "infinity": (RELU, {"layer_0": tensors(b_dec=torch.full((D,), torch.inf))}, "'b_dec' should hold"),
    "whole numbers": (RELU, {"layer_0": tensors(b_enc=torch.ones(F, dtype=torch.int64))}, "'b_enc' should hold"),
    "no features": (
        RELU, {"layer_0": {**tensors(), "b_enc": torch.ones(0), "W_enc": torch.ones(0, D)}}, "for 0 features"
    ),
    "no files": (RELU, {}, "no transcoders that can be read; expected circuit-tracer's config.yaml"),
}  # fmt: skip
WRONG_LENS = {
    "no transcoder": ({"architecture": "standard"}, "architecture: should be 'transcoder'"),
    "another activation": ({"activation_fn": "tanh-relu"}, "activation_fn: should be 'relu' or 'topk'"),
    "topk without k": ({"activation_fn": "topk"}, "k is None; of topk"),
    "a bias of the input": ({"apply_b_dec_to_input": True}, "apply_b_dec_to_input: should be False"),
    "normalised input": ({"normalize_activations": "layer_norm"}, "normalize_activations: should be"),
    "heads": ({"reshape_activations": "hook_z"}, "reshape_activations: should be"),
    "another layer's output": (
        {"metadata__hook_name_out": "blocks.2.hook_mlp_out"},
        "'blocks.2.hook_mlp_out' is written",
    ),
    "a hook of no layer": ({"metadata__hook_name": "ln_final.hook_normalized"}, "names no layer"),
    "a hook of another kind": ({"metadata__hook_name": 3}, "hook_name: should be a text"),
    "another width": ({"architecture": "skip_transcoder"}, "'W_enc' has shape (5, 8), not (8, 5)"),
}


def refused(folder, match, **changes):
    with pytest.raises(UserError, match=re.escape(match)) as error:
        read_transcoders(folder, sizes(**changes))
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("case", WRONG_TRACER)
def test_what_circuit_tracers_files_may_not_be(tmp_path, case):
    config, layers, match = WRONG_TRACER[case]
    refused(tracer(tmp_path / "t", config, **layers), match)


@pytest.mark.parametrize("case", WRONG_LENS)
def test_what_saelens_files_may_not_be(tmp_path, case):
    changes, match = WRONG_LENS[case]
    refused(lens(tmp_path / "t", tensors(rows=case == "another width"), **changes), match)


def test_one_layer_twice_in_folders_of_saelens(tmp_path):
    for name in ("a", "b"):
        lens(tmp_path / "t" / name, tensors(rows=False))
    refused(tmp_path / "t", "second transcoder of layer 1")


@pytest.mark.parametrize("name", ["layer_0.pt", "params.npz", "weights.pkl"])
def test_pickles_are_not_opened(tmp_path, name):
    folder = tmp_path / "t"
    folder.mkdir()
    os.mkfifo(folder / name)  # whoever opened it would wait
    refused(folder, f"{name} is no safetensors file; save its tensors as one")


def test_files_that_are_broken_or_missing(tmp_path):
    folder = tracer(tmp_path / "t")
    (folder / "layer_0.safetensors").write_bytes(b"PK\x03\x04 a zip file, as torch.save writes")
    refused(folder, "layer_0.safetensors: not a readable safetensors file")
    (folder / "config.yaml").write_text("!!python/object/apply:os.system [ls]")
    refused(folder, "config.yaml: line 1: not valid YAML")
    single = lens(tmp_path / "s", tensors(rows=False))
    (single / "sae_weights.safetensors").unlink()
    refused(single, "sae_weights.safetensors: not found")
    (single / "cfg.json").write_text("[]")
    refused(single, "should be a JSON object")


def test_models_that_transcoders_dont_fit(tmp_path):
    folder = tracer(tmp_path / "t", {**RELU, "feature_output_hook": "mlp.hook_out"}, layer_0=tensors())
    refused(folder, "the model has MLPs in 0 layers", d_mlp=0)
    refused(folder, "what is written by this model's MLPs is hook_mlp_out", norm="rms", post_norm=True)


def test_names_of_folders(tmp_path):
    assert find_transcoders(str(tmp_path)) == tmp_path
    for name in ("nowhere", str(tmp_path / "nowhere"), "a\0b", "tiny"):
        with pytest.raises(UserError, match="is no folder of transcoders; give one with"):
            find_transcoders(name)


# ---------------------------------------------------------------- those of tiny


def test_the_bundled_transcoders_do_what_their_card_says():
    folder = find_transcoders("tiny-transcoders")
    assert sum(file.stat().st_size for file in folder.iterdir()) < 3e6
    tiny = load_model("tiny", "cpu")
    model = tiny.transformer
    found = {layer: folded(of, model, layer) for layer, of in read_transcoders(folder, model.config).items()}
    assert list(found) == list(range(model.config.n_layers))
    biases = [load_file(folder / f"layer_{layer}.safetensors")["b_dec"] for layer in found]
    card = (folder / "README.md").read_text()
    assert card.startswith(CARD.partition("{")[0])
    stated = {name: row.split(" | ") for name, row in re.findall(r"^\| ([a-z, -]+) \| (\d.*) \|$", card, re.MULTILINE)}
    assert len(stated) == 2 * len(TASKS)
    for task, tokens, scored in unseen(tiny.tokenizer):
        run, stream = model.run(torch.from_numpy(tokens), torch.zeros(len(tokens), dtype=torch.int64))
        others = [t for t in range(tokens.shape[1]) if t not in scored]
        for layer, transcoder in found.items():
            x = model.after_attention(layer, stream[layer], run.z[layer])
            active = encode(transcoder, model.normalise(x))
            missed = run.mlp[layer] - active @ transcoder.decoder - biases[layer]
            for name, at in ((task, others), (f"{task}, scored", scored)):
                explained, l0 = map(float, stated[name][layer].split(", "))
                share = missed[:, at].square().sum() / run.mlp[layer][:, at].flatten(0, 1).var(0, correction=0).sum()
                assert float(1 - share / missed[:, at, 0].numel()) == pytest.approx(explained, abs=6e-4)
                assert float((active[:, at] > 0).double().sum(-1).mean()) == pytest.approx(l0, abs=0.06)
                assert explained > 0.9
                assert l0 < model.config.d_mlp / 8
