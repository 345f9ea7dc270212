"""Attribution scores against gradients taken in other ways: by autograd through patching, on Hugging Face's models with
plain hooks, in the limit of many steps, and (relp) through a plain forward pass in which the rules detach."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, models

from acdc.errors import UserError
from acdc.methods import eap, eap_ig, relp
from acdc.methods.eap import Attribution
from acdc.model.activations import Activations
from acdc.model.load import load_model
from acdc.model.transformer import Transformer
from acdc.patching.offload import Parts
from acdc.patching.patch import patched_rows
from acdc.patching.problem import Problem
from acdc.task.tokenize import Split
from tests.support import oracle
from tests.support.checkpoints import float64_norm
from tests.support.random_models import JOINT_HEAD_NORM, POST_NORM, random_model, random_prompts

FAMILIES = {
    "layer norm": {"norm": "layer"},
    "rms": {"norm": "rms"},
    "rotary, parallel, gated": {"norm": "layer", "rotary": 2, "parallel": True, "gated": True, "activation": "silu"},
    "no norm, not causal, split position": {"norm": "none", "causal": False, "split_position": True},
    "attention only": {"d_mlp": 0, "n_layers": 3},
    "head norm, gated": {"norm": "rms", "rotary": 4, "gated": True, "activation": "silu"},
    "windows": {"windows": (0, 2, 3), "n_layers": 3},
    "norms after heads and MLPs, soft caps": POST_NORM,
    "norm of all heads' queries": JOINT_HEAD_NORM,
    "neurons, gated": {"features": "neurons", "norm": "rms", "gated": True, "activation": "silu"},
    "features": {"features": "relu", "n_layers": 3},
}
FORMS = ("eap-ig", "eap-ig-activations", "eap-ig-clean-corrupted")
STEPS = 3


def with_head_norm(model: Transformer) -> Transformer:
    config, g = replace(model.config, head_norm=True), torch.Generator().manual_seed(0)
    norms = {name: 1 + 0.3 * torch.randn(shape, generator=g).double() for name, shape in config.shapes().items()
             if name.endswith(".norm")}  # fmt: skip
    return Transformer(config, model.weights | norms | {"unembed.weight": model.weights["unembed.weight"].T})


def make_problem(
    family: str, ablation: str = "corrupted", metric: str = "logit-diff", size=None, smooth: bool = False, **prompts
) -> Problem:
    """`smooth`: with small weights, and tokens that are alike, so that a dozen steps are many."""
    model = random_model(list(FAMILIES).index(family), scale=0.3 if smooth else 0.6, **FAMILIES[family])
    if smooth:
        token = model.weights["token.weight"]
        model.weights["token.weight"] = torch.lerp(token[:1], token, 0.15)
    if family == "head norm, gated":
        model = with_head_norm(model)
    return Problem(model, Parts(model, random_prompts(0, model, **prompts), ablation, size), metric)


def agree(found: np.ndarray, expected: np.ndarray, graph, tolerance: float) -> None:
    assert (np.isnan(found) == ~graph.edges).all()
    assert np.abs(found[graph.edges]).max() > 1e-3, "scores that are all zero compare nothing"
    assert np.abs(found - expected)[graph.edges].max() < tolerance


# --- through patching ------------------------------------------------------------------------------------------------


def edge_gradients(problem: Problem, share: float = 1.0) -> np.ndarray:
    """Float[sender receiver]: minus the gradient of the mean metric in the edges at the full graph.

    Args:
        share: 1: of the clean run; less: of a run from inputs on the way from the corrupted ones to the clean ones, in
            which a removed edge changes what its receiver reads by as much as in the clean run
    """
    model, graph, (runs,) = problem.model, problem.graph, problem.parts
    metric, edges = runs.metric(problem.metric, model), torch.tensor(graph.edges).to(model.dtype).requires_grad_()
    if share != 1:
        inputs = torch.lerp(runs.ablated.inputs, runs.clean.inputs, share)
        clean, residual = model.run_inputs(inputs, runs.pad)
        removed = [
            getattr(clean, f) + getattr(runs.ablated, f) - getattr(runs.clean, f) for f in ("inputs", "z", "mlp")
        ]
        runs = replace(runs, clean=clean, ablated=Activations(*removed), residual=residual)
    metric(patched_rows(model, graph, runs, edges)).mean().backward()
    return -edges.grad.numpy()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("ablation", ["corrupted", "zero", "mean"])
@pytest.mark.parametrize("metric", ["logit-diff", "prob-diff", "nll"])
@pytest.mark.parametrize("scored", ["last", "two", "all"])
def test_eap_is_the_gradient_in_the_edges(family, ablation, metric, scored):
    problem = make_problem(family, ablation, metric, pad=scored != "two", scored=scored, first=1 + (scored == "last"))
    agree(eap.score(problem).edges, edge_gradients(problem), problem.graph, 1e-9)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("metric", ["logit-diff", "kl", "l2"])
def test_eap_ig_is_the_mean_gradient_in_the_edges(family, metric):
    problem = make_problem(family, metric=metric, pad=True, scored="two")
    found = {form: eap_ig.score(problem, form, STEPS).edges for form in ("eap-ig", "eap-ig-clean-corrupted")}
    shares = {"eap-ig": [k / STEPS for k in range(STEPS)], "eap-ig-clean-corrupted": [0, 1]}
    for form, edges in found.items():
        expected = np.mean([edge_gradients(problem, share) for share in shares[form]], axis=0)
        agree(edges, expected, problem.graph, 1e-9)


# --- on Hugging Face's models, with plain hooks: nothing of acdc but the names of the edges -----------------------


def gpt2(**options):
    config = hf.GPT2Config(
        vocab_size=23, n_layer=2, n_head=4, n_embd=16, n_positions=12, initializer_range=0.4, bos_token_id=0,
        eos_token_id=0, **options,
    )  # fmt: skip
    return hf.GPT2LMHeadModel(config)


def llama(**options):
    config = hf.LlamaConfig(
        vocab_size=23, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=16, initializer_range=0.4, bos_token_id=0, eos_token_id=0, **options,
    )  # fmt: skip
    return hf.LlamaForCausalLM(config)


class Gpt2Layer:
    """Where the parts of a GPT-2 layer are, and the weights of its heads as x @ weight."""

    def __init__(self, model, layer: int) -> None:
        block = model.transformer.h[layer]
        self.norms, self.mlp, self.out = (block.ln_1, block.ln_2), block.mlp, block.attn.c_proj
        self.qkv = dict.fromkeys("qkv", block.attn.c_attn)
        self.final, self.embedding, self.d_head = model.transformer.ln_f, model.transformer.wte, 4

    def at(self, kind: str, head: int) -> slice:
        """A head's columns of what its projection gives."""
        start = 16 * "qkv".index(kind) + 4 * head
        return slice(start, start + 4)

    def weight(self, module):
        return module.weight


class LlamaLayer:
    """The same of a Llama layer."""

    def __init__(self, model, layer: int) -> None:
        block = model.model.layers[layer]
        self.norms, self.mlp, self.out = (
            (block.input_layernorm, block.post_attention_layernorm),
            block.mlp,
            block.self_attn.o_proj,
        )
        self.qkv = {c: getattr(block.self_attn, f"{c}_proj") for c in "qkv"}
        self.final, self.embedding, self.d_head = model.model.norm, model.model.embed_tokens, 4

    def at(self, kind: str, head: int) -> slice:
        return slice(4 * head, 4 * head + 4)

    def weight(self, module):
        return module.weight.T


KINDS: dict[str, tuple[Callable, type]] = {"gpt2": (gpt2, Gpt2Layer), "llama": (llama, LlamaLayer)}


class Hooked:
    """A run of a Hugging Face model from what its tokens embed as, and the gradients of −logit difference in it."""

    def __init__(self, model, kind, embedded, correct, wrong, replaced=None) -> None:
        """`replaced`: ("z" or "mlp", layer, what it writes instead of what it computed)."""
        self.layers = [kind(model, layer) for layer in range(2)]
        self.seen: dict[tuple[str, int], torch.Tensor] = {}
        handles = []

        def before(name, module):
            handles.append(
                module.register_forward_pre_hook(lambda _, args: self.replace(name, args[0], replaced, True))
            )

        def after(name, module):
            handles.append(module.register_forward_hook(lambda _, __, out: self.replace(name, out, replaced, False)))

        for i, at in enumerate(self.layers):
            before(("stream", i), at.norms[0])
            before(("middle", i), at.norms[1])
            before(("z", i), at.out)
            after(("mlp", i), at.mlp)
            for module in dict.fromkeys(at.qkv.values()):
                after((f"projected {id(module)}", i), module)
        before(("final", 0), self.layers[0].final)
        logits = model(inputs_embeds=embedded).logits[:, -1]
        (logits.gather(1, wrong[:, None]) - logits.gather(1, correct[:, None])).sum().backward()
        for handle in handles:
            handle.remove()

    def replace(self, name, x, replaced, is_input):
        if replaced is not None and name == replaced[:2]:
            x = replaced[2]
        elif x.requires_grad:
            x.retain_grad()
        self.seen[name] = x
        return (x,) if is_input else x

    def written(self) -> dict[str, torch.Tensor]:
        """What every sender writes."""
        out = {"input": self.seen["stream", 0]}
        for i, at in enumerate(self.layers):
            for h in range(4):
                part = slice(h * at.d_head, (h + 1) * at.d_head)
                out[f"a{i}.h{h}"] = self.seen["z", i][..., part] @ at.weight(at.out)[part]
            out[f"m{i}"] = self.seen["mlp", i]
        return {name: x.detach() for name, x in out.items()}

    def gradients(self) -> dict[str, torch.Tensor]:
        """At the input of every receiver: its own, pulled back through its weights and its norm."""
        out = {"logits": self.seen["final", 0].grad}
        for i, at in enumerate(self.layers):
            x = self.seen["stream", i].detach().requires_grad_()
            for c, module in at.qkv.items():
                projected = self.seen[f"projected {id(module)}", i]
                gradient = torch.zeros_like(projected) if projected.grad is None else projected.grad
                heads = 4 if c == "q" or at.qkv["q"] is module else module.out_features // at.d_head
                for h in range(heads):
                    part = at.at(c, h)
                    y = at.norms[0](x) @ at.weight(module)[:, part]
                    (out[f"a{i}.h{h}<{c}>"],) = torch.autograd.grad(y, x, gradient[..., part])
            x, y = self.seen["middle", i].detach().requires_grad_(), self.seen["mlp", i]
            if y.grad is None:  # replaced
                out[f"m{i}"] = torch.zeros_like(x)
            else:
                (out[f"m{i}"],) = torch.autograd.grad(at.mlp(at.norms[1](x)), x, y.grad)
        return out


def hooked_scores(model, kind, clean, corrupted, correct, wrong, form: str) -> dict[str, float]:
    """Σ over positions of (corrupted − clean) · mean gradient, mean over the prompts, of every pair of names."""
    embed = kind(model, 0).embedding

    def run(share: float, replaced=None) -> Hooked:
        a, b = (embed(torch.as_tensor(x)).detach() for x in (corrupted, clean))
        return Hooked(model, kind, (a + share * (b - a)).requires_grad_(), correct, wrong, replaced)

    ends = run(0), run(1)
    shares = {"eap": [1.0], "eap-ig": [k / STEPS for k in range(STEPS)], "eap-ig-clean-corrupted": [0.0, 1.0]}
    if form == "eap-ig-activations":
        steps = [k / STEPS for k in range(1, STEPS + 1)]
        runs = [run(share) for share in steps]
        for name in [("z", 0), ("mlp", 0), ("z", 1), ("mlp", 1)]:
            a, b = (end.seen[name].detach() for end in ends)
            runs += [run(1.0, (*name, a + share * (b - a))) for share in steps]
    else:
        runs = [run(share) for share in shares[form]]
    gradients = [r.gradients() for r in runs]
    before, after = (end.written() for end in ends)
    out = {}
    for receiver in gradients[0]:
        mean = torch.stack([g[receiver] for g in gradients]).mean(0)
        for sender in before:
            value = ((before[sender] - after[sender]) * mean).sum((1, 2)).mean()
            out[f"{sender}->{receiver}"] = float(value)
    return out


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A Hugging Face model, our reading of it, prompts for both, and what the scores are by the hooks."""
    monkeypatch.setattr("transformers.models.llama.modeling_llama.LlamaRMSNorm.forward", float64_norm)

    def make(name: str, dtype: str, form: str, **options):
        torch.manual_seed(0)
        make_model, kind = KINDS[name]
        theirs = make_model(**options).eval()
        for parameter, p in theirs.named_parameters():
            if parameter.endswith("bias") or "norm" in parameter or "ln_" in parameter:
                p.data += 0.3 * torch.randn_like(p)
        theirs.save_pretrained(tmp_path)
        Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>")).save(str(tmp_path / "tokenizer.json"))
        ours = load_model(str(tmp_path), "cpu", dtype).transformer
        theirs = theirs.to(getattr(torch, dtype))
        prompts = random_prompts(1, ours, batch=3, n_pos=6, first=2)
        prompts = replace(prompts, correct=prompts.correct[:, :1], wrong=prompts.wrong[:, :1])
        correct, wrong = (torch.as_tensor(x)[:, 0] for x in (prompts.correct, prompts.wrong))
        expected = hooked_scores(theirs, kind, prompts.clean, prompts.corrupted, correct, wrong, form)
        problem = Problem(ours, Parts(ours, prompts, "corrupted"), "logit-diff")
        found = eap.score(problem) if form == "eap" else eap_ig.score(problem, form, STEPS)
        return problem.graph, found.edges, expected

    return make


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("form", ["eap", *FORMS])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-9)])
def test_scores_are_those_of_hooks_on_hugging_faces_model(small, name, form, dtype, tolerance):
    graph, found, expected = small(name, dtype, form)
    wanted = [[expected[f"{s.name}->{r.name}"] for r in graph.receivers] for s in graph.senders]
    agree(found, np.array(wanted), graph, tolerance)


def test_scores_of_heads_that_share_keys_and_values_add_up_to_those_of_the_shared_ones(small):
    graph, found, expected = small("llama", "float64", "eap", num_key_value_heads=2)
    for s, r in np.argwhere(graph.edges):
        receiver = graph.receivers[r]
        if receiver.kind in ("k", "v"):
            of_group = [graph.receiver_index[f"a{receiver.layer}.h{h}<{receiver.kind}>"] for h in
                        (2 * (receiver.head // 2), 2 * (receiver.head // 2) + 1)]  # fmt: skip
            shared = f"a{receiver.layer}.h{receiver.head // 2}<{receiver.kind}>"
            assert found[s, of_group].sum() == pytest.approx(expected[f"{graph.senders[s].name}->{shared}"], abs=1e-9)
        else:
            assert found[s, r] == pytest.approx(expected[graph.edge_name(s, r)], abs=1e-9)


# --- limits and sums -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "features"])  # whose ReLUs have steps in the gradient
@pytest.mark.parametrize("metric", ["nll", "kl"])
def test_eap_ig_tends_to_the_path_integral(family, metric):
    """The error of a sum over the left ends of n steps is (f(0) − f(1)) / 2n + O(1/n²); Gauss's sum has none to speak
    of."""
    problem = make_problem(family, metric=metric, pad=True, scored="two", smooth=True)
    points, weights = np.polynomial.legendre.leggauss(10)
    exact = sum(w / 2 * edge_gradients(problem, (1 + x) / 2) for x, w in zip(points, weights, strict=True))
    few, many = (eap_ig.score(problem, "eap-ig", steps).edges for steps in (6, 12))
    first = (edge_gradients(problem, 0.0) - edge_gradients(problem)) / 2
    exists = problem.graph.edges
    errors = [np.abs(found - exact)[exists].max() for found in (few, many)]
    assert 1.9 < errors[0] / errors[1] < 2.1
    assert np.abs(12 * (many - exact) - first)[exists].max() < 0.1 * np.abs(first).max()
    assert np.abs(2 * many - few - exact)[exists].max() < 0.05 * errors[1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("metric", ["prob-diff", "kl", "l2"])
def test_scores_of_the_inputs_edges_add_up_to_the_whole_effect(family, metric):
    problem = make_problem(family, metric=metric, pad=True, scored="all", smooth=True)
    (runs,), n_inputs = problem.parts, len(problem.graph.inputs)
    metric = runs.metric(metric, problem.model)
    _, corrupted = problem.model.run_inputs(runs.ablated.inputs, runs.pad)
    effect = float(
        (metric(problem.model.normalise(corrupted[-1][tuple(runs.rows.T)])) - metric(runs.targets.clean)).mean()
    )
    totals = [np.nansum(eap_ig.score(problem, "eap-ig", n).edges[:n_inputs]) for n in (6, 12)]
    errors = [abs(total - effect) for total in totals]
    assert errors[1] < 0.6 * errors[0]
    assert abs(2 * totals[1] - totals[0] - effect) < 0.05 * errors[1] + 3e-3 * abs(effect)


@pytest.mark.parametrize("family", [f for f, sizes in FAMILIES.items() if "post_norm" not in sizes])  # not linear
@pytest.mark.parametrize("metric", ["logit-diff", "prob-diff", "nll"])
def test_scores_of_the_logits_edges_add_up_to_the_change_of_the_final_stream(family, metric):
    problem = make_problem(family, metric=metric, pad=True, scored="two")
    (runs,), model = problem.parts, problem.model
    final = runs.residual[-1].clone().requires_grad_()
    runs.metric(metric, model)(model.normalise(final[tuple(runs.rows.T)])).mean().backward()
    _, corrupted = model.run_inputs(runs.ablated.inputs, runs.pad)
    expected = float((final.grad * (corrupted[-1] - runs.residual[-1])).sum())
    assert np.nansum(eap.score(problem).edges[:, -1]) == pytest.approx(expected, abs=1e-10)
    assert abs(expected) > 1e-3


# --- relevance: gradients at zeros that are added to the inputs of receivers, in a forward pass that detaches ---------


def relevance_pass(model: Transformer, tokens: torch.Tensor, pad: torch.Tensor):
    """What every sender writes, what the norm behind it multiplies that by, the zeros added to what every receiver
    reads, and the logits but for their mean."""
    w, c, (batch, n_pos) = model.weights, model.config, tokens.shape
    without_norm = SimpleNamespace(config=replace(c, head_norm=False), weights=w)
    zeros: dict[str, torch.Tensor] = {}
    factors: dict[str, torch.Tensor] = defaultdict(lambda: torch.ones(()))

    def scaled(x):
        return x / ((x**2).mean(-1, keepdim=True) + c.norm_eps).sqrt().detach()

    def read(receiver, stream):
        zeros[receiver] = torch.zeros_like(stream, requires_grad=True)
        x = stream + zeros[receiver]
        if c.norm == "none" or not (c.pre_norm or receiver == "logits"):
            return x
        return scaled(x - x.mean(-1, keepdim=True) if c.norm == "layer" else x)

    def linear(x, name, *index):
        y = x @ w[f"layers.{layer}.{name}.weight"][index] + w[f"layers.{layer}.{name}.bias"][index]
        if c.joint_head_norm and name in "qk":
            y = y / oracle.over_heads(model, f"layers.{layer}.{name}", x).detach()
            return y * w[f"layers.{layer}.{name}.norm"][index]
        return y

    def identity(x):
        return x * (oracle.act(model, x) / x).detach()

    def place(x, kind):
        x = scaled(x) * w[f"layers.{layer}.{kind}.norm"] if c.head_norm else x
        return oracle.place(without_norm, kind, layer, x, positions)

    positions = (torch.arange(n_pos) - pad[:, None]).clamp(min=0)
    out = {"tok" if c.split_position else "input": w["token.weight"][tokens]}
    if not c.rotary:
        position = w["position.weight"][positions]
        out |= {"pos": position} if c.split_position else {"input": out["input"] + position}
    stream = sum(out.values())
    for layer in range(c.n_layers):
        seen = torch.zeros(batch, n_pos, n_pos, dtype=torch.bool)
        for b, t, s in np.ndindex(batch, n_pos, n_pos):
            within = s > t - ((c.windows[layer] if c.windows else 0) or n_pos)
            seen[b, t, s] = s == t or (s >= pad[b] and (s <= t or not c.causal) and within)
        before, heads = stream, []
        for h in range(c.n_heads):
            q, k, v = (linear(read(f"a{layer}.h{h}<{x}>", before), x, h) for x in "qkv")
            scores = oracle.soft_cap(place(q, "q") @ place(k, "k").mT, c.score_cap)
            z = torch.where(seen, scores, -torch.inf).softmax(-1) @ v
            heads.append(z @ w[f"layers.{layer}.o.weight"][h])
            out[f"a{layer}.h{h}"] = heads[-1]
        together = sum(heads) + w[f"layers.{layer}.o.bias"]
        if c.post_norm:
            for h in range(c.n_heads):
                factors[f"a{layer}.h{h}"] = (scaled(together) / together).detach() * w[f"layers.{layer}.o.norm"]
            together = together * factors[f"a{layer}.h0"]
        stream = stream + together
        if c.d_mlp:
            x = read(f"m{layer}", before if c.parallel else stream)
            if c.gated:
                up, gate = linear(x, "mlp_in"), identity(linear(x, "mlp_gate"))
                hidden = up * gate.detach() / 2 + up.detach() * gate / 2
            else:
                hidden = identity(linear(x, "mlp_in"))
            out[f"m{layer}"] = linear(hidden, "mlp_out")
            if c.post_norm:
                out[f"m{layer}"] = scaled(out[f"m{layer}"]) * w[f"layers.{layer}.mlp_out.norm"]
            stream = stream + out[f"m{layer}"]
    logits = read("logits", stream) @ w["unembed.weight"].T + w["unembed.bias"]
    return out, factors, zeros, oracle.soft_cap(logits, c.logit_cap)


def plain_relevance(problem: Problem, prompts: Split, ablation: str) -> np.ndarray:
    """Float[sender receiver]: Σ over positions of (ablated − clean) · gradient, mean over the prompts."""
    model, graph = problem.model, problem.graph
    pad = torch.as_tensor(prompts.pad)
    clean, factors, zeros, logits = relevance_pass(model, torch.as_tensor(prompts.clean), pad)
    naive = oracle.Naive(model, prompts, problem.metric, ablation)
    per_prompt = np.bincount(prompts.rows[:, 0])
    value = torch.zeros((), dtype=torch.float64)
    for (b, t), right, wrong in zip(prompts.rows, prompts.correct, prompts.wrong, strict=True):
        right, row = right[right >= 0], logits[b, t]
        if problem.metric == "logit-diff":
            value = value - (row[right].mean() - row[wrong].max()) / per_prompt[b]
        else:
            value = value - row.log_softmax(-1)[right].logsumexp(-1) / per_prompt[b]
    value.backward()
    changes = [(naive.ablated[s.name] - clean[s.name].detach()) * factors[s.name] for s in graph.senders]
    out = [[float((change * zeros[r.name].grad).sum()) for r in graph.receivers] for change in changes]
    return np.array(out) / len(prompts.clean)


@pytest.mark.parametrize("family", [f for f, sizes in FAMILIES.items() if "features" not in sizes])
@pytest.mark.parametrize(("ablation", "metric"), [("corrupted", "logit-diff"), ("zero", "nll"), ("mean", "nll")])
def test_relp_is_the_gradient_of_a_pass_that_detaches_by_the_rules(family, ablation, metric):
    problem = make_problem(family, ablation, metric, pad=True, scored="two")
    expected = plain_relevance(problem, random_prompts(0, problem.model, pad=True, scored="two"), ablation)
    found = relp.score(problem).edges
    agree(found, expected, problem.graph, 1e-9)
    queries = [r.kind == "q" for r in problem.graph.receivers]
    assert np.nanmax(np.abs(found[:, queries])) > 1e-3
    assert np.nanmax(np.abs(found - eap.score(problem).edges)) > 1e-3


@pytest.mark.parametrize("sizes", [{"d_mlp": 0}, {"activation": "relu"}])
def test_relp_is_eap_where_no_rule_says_otherwise(sizes):
    """Also where a hidden unit is exactly 0."""
    model = random_model(0, norm="none", **sizes)
    if "activation" in sizes:
        model.weights["layers.0.mlp_in.weight"][:, 0] = 0
        model.weights["layers.0.mlp_in.bias"][0] = 0
    problem = Problem(model, Parts(model, random_prompts(0, model), "corrupted"), "nll")
    agree(relp.score(problem).edges, eap.score(problem).edges, problem.graph, 1e-9)


# --- what is refused, and what changes nothing -----------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["kl", "l2"])
def test_a_metric_that_is_flat_at_the_clean_run_is_refused(metric):
    for method in (eap, relp):
        with pytest.raises(UserError, match="gradient at the full model is zero") as error:
            method.score(make_problem("layer norm", metric=metric))
        assert f"--metric {metric}" in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("ablation", ["zero", "mean"])
@pytest.mark.parametrize("form", FORMS)
def test_forms_that_need_corrupted_prompts_say_so(ablation, form):
    problem = make_problem("layer norm", ablation)
    if form == "eap-ig-activations":
        assert np.nanmax(np.abs(eap_ig.score(problem, form, STEPS).edges)) > 0
        return
    with pytest.raises(UserError, match="needs corrupted prompts") as error:
        eap_ig.score(problem, form, STEPS)
    assert f"--ablation {ablation}" in str(error.value)
    assert "\n" not in str(error.value)


def all_scores(problem: Problem) -> list[np.ndarray]:
    one_run = [method.score(problem).edges for method in (eap, relp)]
    return one_run + [eap_ig.score(problem, form, STEPS).edges for form in FORMS]


@pytest.mark.parametrize("family", ["layer norm", "no norm, not causal, split position"])
def test_neither_chunks_nor_parts_change_scores(family, monkeypatch):
    prompts = {"batch": 5, "pad": True, "scored": "two"}
    whole, parts = all_scores(make_problem(family, **prompts)), all_scores(make_problem(family, size=2, **prompts))
    seen: list[int] = []
    chunks = Problem.chunks
    monkeypatch.setattr(Problem, "chunks", lambda self, n: (seen.append(len(r.pad)) or r for r in chunks(self, n)))
    for module in (eap, eap_ig):
        monkeypatch.setattr(module, "CHUNK", 3)
    chunked = all_scores(make_problem(family, **prompts))
    assert seen == [3, 2] * 5
    for a, b, c in zip(whole, parts, chunked, strict=True):
        assert np.nanmax(np.abs(a)) > 1e-3
        assert np.allclose(a, b, rtol=0, atol=1e-12, equal_nan=True)
        assert np.allclose(a, c, rtol=0, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("family", ["layer norm", "no norm, not causal, split position"])
def test_senders_that_do_not_fit_into_memory_at_once_score_the_same(family, monkeypatch):
    problem = make_problem(family, batch=5, pad=True, scored="two")
    whole = all_scores(problem)
    monkeypatch.setattr("acdc.patching.activations.TABLE_BYTES", 1)
    monkeypatch.setattr(Attribution, "_flush", counted := Counted(Attribution._flush))
    for a, b in zip(whole, all_scores(problem), strict=True):
        assert np.nanmax(np.abs(a)) > 1e-3
        assert np.allclose(a, b, rtol=0, atol=1e-12, equal_nan=True)
    assert counted.calls > 0


class Counted:
    """A method that counts its calls."""

    def __init__(self, method):
        self.method, self.calls = method, 0

    def __get__(self, instance, owner):
        def call(*arguments):
            self.calls += 1
            return self.method(instance, *arguments)

        return call


def test_scores_are_means_over_prompts():
    """Twice the same prompts give the same scores."""
    model = random_model(0)
    prompts = random_prompts(0, model)
    rows = np.concatenate([prompts.rows, prompts.rows + np.array([len(prompts.clean), 0])])
    twice = Split(
        **{f: np.concatenate([getattr(prompts, f)] * 2) for f in ("clean", "corrupted", "pad", "correct", "wrong")},
        rows=rows,
    )
    one, two = (all_scores(Problem(model, Parts(model, p, "corrupted"), "logit-diff")) for p in (prompts, twice))
    for a, b in zip(one, two, strict=True):
        assert np.allclose(a, b, rtol=0, atol=1e-12, equal_nan=True)
