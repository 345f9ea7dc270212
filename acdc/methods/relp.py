"""Relevance patching, RelP (Jafari et al. 2025, arXiv 2508.21258).

Score of an edge = (sender's ablated − clean output) · (propagation coefficient of the metric at the receiver's input),
summed over positions, mean over the prompts: that of `acdc.methods.eap`, with the gradient replaced by the coefficients
of layer-wise relevance propagation (LRP). They come from the same backward pass, with other local derivatives:

norms        LN-rule: what they divide by is a constant; the mean is still subtracted
activations  identity rule: act(x) = x · (act(x) / x), whose second factor is a constant, 0 where x is 0
gated MLPs   half rule: each factor of the product gets half of what the gradient would give it
linear maps  0-rule, and the metric: their gradient

These are the rules that the authors' code applies by default (github.com/FarnoushRJ/RelP), without its 1e-6 against
small denominators. Attention has its gradient there, and here: queries and keys are scored by it. The AH-rule, which
the authors also list, takes attention patterns as constants; all edges into queries and keys would have the score 0.
Their demo patches clean activations into the corrupted run and takes the coefficients there; removing edges goes the
other way, so they are those of the clean run here.
"""

import torch
from torch import Tensor

from acdc.graph.scores import Scores
from acdc.io.progress import Show, silent
from acdc.methods.eap import at_clean
from acdc.model.transformer import Transformer
from acdc.patching.problem import Problem
from acdc.registry import check_method


def score(problem: Problem, progress: Show = silent) -> Scores:
    """Scores of all edges. Raises UserError for a metric whose gradient at the full model is zero."""
    check_method("relp", problem.metric, problem.parts.ablation)
    return at_clean(problem, RelevanceModel(problem.model), progress)


class RelevanceModel(Transformer):
    """A model with another one's weights and values, whose backward pass propagates relevance."""

    constant_scale = True

    def __init__(self, model: Transformer) -> None:
        vars(self).update(vars(model))

    def normalise(self, x: Tensor) -> Tensor:
        """Normalise as the model does, by the LN-rule."""
        if self.config.norm == "none":
            return x
        return self.rms_norm(x - x.mean(-1, keepdim=True) if self.config.norm == "layer" else x)

    def rms_norm(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """Divide by the root mean square, by the LN-rule."""
        y = x * (x.square().mean(-1, keepdim=True) + self.config.norm_eps).rsqrt().detach()
        return y if scale is None else y * scale

    def activate(self, x: Tensor) -> Tensor:
        """Apply the activation function by the identity rule."""
        factor = torch.where(x == 0, 0, super().activate(x) / x)
        return x * factor.detach()

    def gate(self, x: Tensor, gate: Tensor) -> Tensor:
        """Multiply the halves of a gated MLP by the half rule."""
        product = super().gate(x, gate)
        return (product + product.detach()) / 2
