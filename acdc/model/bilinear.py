"""The score of a head as a bilinear form of what it reads, in terms.

The score between query i and key j is bilinear in what the head reads there, x after its norm: [x_i; 1] Ω [x_j; 1] with
Ω = [W_Q; b_Q] [W_K; b_K]ᵀ of rank d_head. So it has as many terms, Σ_k σ_k ([x_i; 1]·u_k) ([x_j; 1]·v_k), where the
scale and shift of the norm and the scale of attention are folded into the weights (Franco and Crovella 2024, arXiv
2410.00340). Rotations stand inside Ω, which then depends on i − j; so does a norm of queries and keys, by its current
scale.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from acdc.model.transformer import Transformer

Sides = dict[str, Tensor]  # of queries, "q", and of keys, "k"


@dataclass(frozen=True)
class Terms:
    """The scores of pairs of a query and a key by term."""

    directions: Sides  # u and v in the residual stream, without the bias, Float[pair d_model term]
    heads: Sides  # what a query or key gets from 1 along them, before it is placed, Float[pair term d_head]
    sigma: Tensor  # Float[pair term], falling
    scores: Tensor  # the terms, Float[pair term], which add up to the scores

    def split(self, kind: str, x: Tensor, slope: Tensor) -> Tensor:
        """What vectors Float[pair pos d_model] add by term to something that rises with queries or keys before they are
        placed, by its slope there, Float[pair pos d_head]: Float[pair term]."""
        read = x.cpu().double() @ self.directions[kind]
        return (read * (slope.cpu().double() @ self.heads[kind].mT)).sum(1)

    def only(self, kind: str, chosen: Tensor, x: Tensor) -> Tensor:
        """The part of vectors Float[pair pos d_model] that the chosen terms, Bool[pair term], read: the others read
        nothing of it, and the chosen ones nothing of the rest."""
        directions = self.directions[kind]
        # Each row of the pseudo-inverse is a vector of which one direction reads 1, and the others nothing.
        return (x.cpu().double() @ directions * chosen[:, None] @ torch.linalg.pinv(directions)).to(x)


def score_terms(model: Transformer, layer: int, head: int, x: Sides, at: Sides) -> Terms:
    """Take a head's scores apart, in float64: `x` are the inputs of the queries and the keys, Float[pair d_model], and
    `at` their positions, Int[pair]."""
    inputs = {}
    bases = {}  # Float[d_model+1 term], orthonormal
    factors = {}  # Float[term d_head]: a basis times its factor are the weights and the bias
    placed = {}  # the same after `place`, Float[pair term d_head]
    for c in "qk":
        w, b = (model.weights[f"layers.{layer}.{c}.{name}"][head].cpu().double() for name in ("weight", "bias"))
        if model.config.norm == "layer":
            w = w - w.mean(0)  # what is read has the mean 0
        inputs[c] = F.pad(model.normalise(x[c].cpu().double()), (0, 1), value=1.0)
        bases[c], factors[c] = torch.linalg.qr(torch.cat([w, b[None]]))
        y = (inputs[c] @ bases[c] @ factors[c]).to(x[c])[:, None]
        one = torch.eye(y.shape[-1]).to(y).expand(len(y), -1, -1)
        placed[c] = factors[c] @ model.unplace(c, layer, one, y, at[c][:, None]).mT.cpu().double()
    u, sigma, v = torch.linalg.svd(placed["q"] @ placed["k"].mT)
    turns = {"q": u, "k": v.mT}
    sides = {c: bases[c] @ turn for c, turn in turns.items()}
    q, k = (torch.einsum("pi,pit->pt", inputs[c], side) for c, side in sides.items())
    directions = {c: side[:, :-1] for c, side in sides.items()}
    heads = {c: turn.mT @ factors[c] for c, turn in turns.items()}
    return Terms(directions, heads, sigma, sigma * q * k)


def fewest(terms: Tensor, share: float = 0.9) -> Tensor:
    """The fewest terms that make a share of their sum: Float[pair term] to Bool[pair term]."""
    total = terms.sum(-1, keepdim=True)
    largest, order = (terms * total.sign()).sort(-1, descending=True)
    before = largest.cumsum(-1) - largest
    return torch.zeros_like(terms, dtype=torch.bool).scatter(-1, order, before < share * total.abs())
