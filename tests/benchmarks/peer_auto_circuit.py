"""auto-circuit's ACDC on weights and prompts that `peer.py` hands over. Runs in auto-circuit's own environment.

`python peer_auto_circuit.py FOLDER`; the folder holds job.json and tensors.safetensors, and gets result.json.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from auto_circuit.data import PromptDataLoader, PromptDataset
from auto_circuit.prune_algos.ACDC import acdc_prune_scores
from auto_circuit.utils.ablation_activations import src_ablations
from auto_circuit.utils.graph_utils import patch_mode, patchable_model, set_all_masks
from auto_circuit.utils.tensor_ops import multibatch_kl_div
from safetensors.torch import load_file
from torch.nn.functional import log_softmax
from transformer_lens import HookedTransformer, HookedTransformerConfig


def build(c, w):
    """The same weights in TransformerLens, whose conventions are those of the hand-over."""
    cfg = HookedTransformerConfig(
        n_layers=c["n_layers"],
        d_model=c["d_model"],
        n_ctx=c["n_positions"],
        d_head=c["d_head"],
        n_heads=c["n_heads"],
        d_mlp=c["d_mlp"],
        d_vocab=c["vocab_size"],
        d_vocab_out=c["vocab_out"],
        act_fn=c["activation"],
        eps=c["norm_eps"],
        normalization_type="LNPre",
        use_attn_scale=False,
        device="cpu",
        init_weights=False,
        default_prepend_bos=False,
    )
    model = HookedTransformer(cfg)
    state = {"embed.W_E": w["token.weight"], "pos_embed.W_pos": w["position.weight"]}
    state |= {"unembed.W_U": w["unembed.weight"], "unembed.b_U": w["unembed.bias"]}
    for i in range(c["n_layers"]):
        for x in "qkvo":
            for kind in ("weight", "bias"):
                name = ("W_" if kind == "weight" else "b_") + x.upper()
                state[f"blocks.{i}.attn.{name}"] = w[f"layers.{i}.{x}.{kind}"]
        for x in ("in", "out"):
            state[f"blocks.{i}.mlp.W_{x}"] = w[f"layers.{i}.mlp_{x}.weight"]
            state[f"blocks.{i}.mlp.b_{x}"] = w[f"layers.{i}.mlp_{x}.bias"]
    missing = {name for name, _ in model.named_parameters()} - set(state)
    assert not missing, missing
    model.load_state_dict(state, strict=False)
    model.set_use_attn_result(True)
    model.set_use_split_qkv_input(True)
    model.set_use_hook_mlp_in(True)
    model.eval()
    for p in model.parameters():
        p.requires_grad_(False)
    return model


def our_name(edge):
    def node(name):
        if name in ("Resid Start", "Resid End"):
            return "input" if name == "Resid Start" else "logits"
        if name.startswith("MLP "):
            return "m" + name[4:]
        layer, head, *kind = name[1:].split(".")
        return f"a{layer}.h{head}" + (f"<{kind[0].lower()}>" if kind else "")

    return f"{node(edge.src.name)}->{node(edge.dest.name)}"


def whole(model, clean, corrupted, threshold):
    """`acdc_prune_scores` as it is, for one τ: the edges it keeps."""
    answers = [torch.zeros(1, dtype=torch.long)] * len(clean)
    data = PromptDataset(clean, corrupted, answers, answers)
    loader = PromptDataLoader(data, seq_len=None, diverge_idx=0, batch_size=len(clean), shuffle=False)
    started = time.perf_counter()
    scores = acdc_prune_scores(model, loader, None, tao_exps=[0], tao_bases=[threshold])
    seconds = time.perf_counter() - started
    kept = [our_name(e) for e in model.edges if torch.isinf(e.prune_score(scores))]
    order = [our_name(e) for e in sorted(model.edges, key=lambda e: e.dest.layer, reverse=True)]
    return {"kept": sorted(kept), "order": order, "tested": len(model.edges), "seconds": seconds}


def sampled(model, clean, corrupted, samples):
    """The steps of `acdc_prune_scores` for some edges into each layer; what they cost depends on the layer only."""
    started = time.perf_counter()
    ablated, current = src_ablations(model, corrupted), src_ablations(model, clean)
    layers = model.cfg.n_layers
    with torch.inference_mode():
        clean_out = model(clean)[model.out_slice]
        _, tokens, short, mask = model.input_to_embed(clean)
        _, cache = model.run_with_cache(clean)
        resids = [cache[f"blocks.{i}.hook_resid_pre"].clone() for i in range(layers)]
        del cache
    clean_logprobs = log_softmax(clean_out, dim=-1)
    setup = time.perf_counter() - started
    by_layer = {i: [] for i in range(layers)}
    for edge in sorted(model.edges, key=lambda e: e.name):
        by_layer[int(edge.dest.module_name.split(".")[1])].append(edge)
    set_all_masks(model, val=0.0)
    seconds, first = {}, True
    with patch_mode(model, ablated, curr_src_outs=current):
        for layer in reversed(range(layers)):
            edges = by_layer[layer]
            times = []
            for i in range(samples + int(first)):  # the very first call is not counted
                edge = edges[i * len(edges) // (samples + 1)]
                started = time.perf_counter()
                edge.patch_mask(model).data[edge.patch_idx] = 1.0
                with torch.inference_mode():
                    out = model(
                        resids[layer],
                        start_at_layer=layer,
                        tokens=tokens,
                        shortformer_pos_embed=short,
                        attention_mask=mask,
                    )[model.out_slice]
                multibatch_kl_div(log_softmax(out, dim=-1), clean_logprobs).item()
                times.append(time.perf_counter() - started)
                edge.patch_mask(model).data[edge.patch_idx] = 0.0
            seconds[layer] = times[int(first) :]
            first = False
    # Where the machine was busy for a while, a layer can't have cost more than one below it, which does all its work.
    cost = {layer: min(min(seconds[below]) for below in range(layer + 1)) for layer in seconds}
    totals = [
        setup + sum(len(by_layer[layer]) * each for layer, each in round_.items())
        for round_ in (cost, *({layer: seconds[layer][i] for layer in seconds} for i in range(samples)))
    ]
    return {
        "seconds_by_layer": seconds,
        "edges_by_layer": {layer: len(e) for layer, e in by_layer.items()},
        "setup": setup,
        "sampled": sum(map(len, seconds.values())),
        "tested": len(model.edges),
        "total": totals[0],
        "totals": totals[1:],
    }


def main():
    folder = Path(sys.argv[1])
    job = json.loads((folder / "job.json").read_text())
    torch.set_num_threads(job["threads"])
    w = load_file(folder / "tensors.safetensors")
    clean, corrupted = w["clean"], w["corrupted"]
    tl = build(job["config"], w)
    with torch.inference_mode():
        logits = tl(clean)[:, -1].clone()
    model = patchable_model(tl, factorized=True, slice_output="last_seq", separate_qkv=True, device=torch.device("cpu"))
    with torch.inference_mode():
        assert torch.allclose(model(clean)[model.out_slice], logits, atol=1e-3)
    if job["whole"]:
        result = whole(model, clean, corrupted, job["threshold"])
    else:
        result = sampled(model, clean, corrupted, job["samples"])
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
