"""Recipe of the bundled model `or-gate`: one layer whose two heads are the inputs of an OR, set by hand.

    python -m tests.recipes.make_or_gate --out acdc/bundled

Each head moves the token's 1 into a direction of its own, a and b; the MLP computes a OR b = relu(a + b) -
relu(a + b - 1) into a third one, which the output reads. Either head is enough, so a greedy method that
removes edges one by one keeps just one of the two (Conmy et al. 2023).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from tests.recipes.compile_tracr import Array, Model, forward, load_model, make_model, save_model, structure

WORDS = ("0", "1")
BASIS = ("token", "a", "b", "out")
EDGES = ["input->a0.h0<v>", "input->a0.h1<v>", "a0.h0->m0", "a0.h1->m0", "m0->logits"]


def make_or_gate() -> Model:
    """The model, in float64. Only what is not zero is set."""
    token, a, b, out = range(4)
    weights = _zeros(d_model=4, n_heads=2, d_head=1, d_mlp=2)
    weights["token.weight"][1, token] = 1
    weights["layers.0.v.weight"][:, token, 0] = 1
    weights["layers.0.o.weight"][0, 0, a] = 1
    weights["layers.0.o.weight"][1, 0, b] = 1
    weights["layers.0.mlp_in.weight"][[a, b], :] = 1
    weights["layers.0.mlp_in.bias"][1] = -1
    weights["layers.0.mlp_out.weight"][:, out] = (1, -1)
    weights["unembed.weight"][out, 0] = 1
    return make_model(weights, n_layers=1, causal=True, split_position=False)


def _zeros(d_model: int, n_heads: int, d_head: int, d_mlp: int) -> dict[str, Array]:
    """All tensors of a one-layer model with two tokens, one position and one output, zero."""
    shapes: dict[str, tuple[int, ...]] = {"token.weight": (2, d_model), "position.weight": (1, d_model)}
    for c in "qkv":
        shapes[f"layers.0.{c}.weight"] = (n_heads, d_model, d_head)
        shapes[f"layers.0.{c}.bias"] = (n_heads, d_head)
    shapes |= {"layers.0.o.weight": (n_heads, d_head, d_model), "layers.0.o.bias": (d_model,)}
    shapes |= {"layers.0.mlp_in.weight": (d_model, d_mlp), "layers.0.mlp_in.bias": (d_mlp,)}
    shapes |= {"layers.0.mlp_out.weight": (d_mlp, d_model), "layers.0.mlp_out.bias": (d_model,)}
    shapes |= {"unembed.weight": (d_model, 1), "unembed.bias": (1,)}
    return {name: np.zeros(shape) for name, shape in shapes.items()}


def check(model: Model) -> None:
    """Assert the OR: of the token in each head, then of the heads with edges removed."""

    def output(word: str, *removed: str) -> float:
        return float(forward(model, np.array([[WORDS.index(word)]]), removed)[0, 0, 0])

    assert structure(model) == EDGES, structure(model)
    assert (output("0"), output("1")) == (0, 1)
    assert output("1", "a0.h0->m0") == output("1", "a0.h1->m0") == 1
    assert output("1", "a0.h0->m0", "a0.h1->m0") == output("1", "m0->logits") == 0
    assert output("1", "input->a0.h0<v>") == output("1", "input->a0.h1<v>") == 1


def main() -> None:
    """Write the model."""
    parser = argparse.ArgumentParser(description="Make the bundled or-gate model.")
    parser.add_argument("--out", type=Path, required=True, help="folder that gets the folder `or-gate`")
    folder = parser.parse_args().out / "or-gate"
    save_model(folder, make_or_gate(), WORDS, BASIS)
    check(load_model(folder))
    print("or-gate: right")


if __name__ == "__main__":
    main()
