"""The paper's objectives: a loss and a score each, as functions of the network's output.

Owns their numerics and the table of their names; knows no network and no data. Every function works in float32 whatever
the network computed in, since bfloat16 scores tie and change the AUROC.
Use: `find("hsc").loss(out, target)`; `find("focal:0.5")` gives a variant its parameter.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastad.errors import FastadError, unknown

EPS = 1e-9


@dataclass(frozen=True, slots=True)
class Objective:
    """`loss(out [B, D], target [B]) → [B]` and `score(out [B, D]) → [B]`, unsaturated, higher = more anomalous.

    `output_width`: D, or None for the network's own representation. `uses_oe` False: trained on nominal images alone.
    `guard_loss`: the loss of an OE image above which the 1e-9 in its formula outweighs what it is added to.
    """

    name: str
    loss: Callable[[Tensor, Tensor], Tensor]
    score: Callable[[Tensor], Tensor]
    output_width: int | None = None
    uses_oe: bool = True
    guard_loss: float = math.inf


def squared_norm(z: Tensor) -> Tensor:
    """‖z‖², [B, D] → [B]."""
    return z.float().square().sum(dim=1)


def pseudo_huber(z: Tensor) -> Tensor:
    """√(‖z‖² + 1) − 1, [B, D] → [B] (Section 2), written so that small norms keep their digits."""
    squared = squared_norm(z)
    return squared / ((squared + 1).sqrt() + 1)


def l1_norm(z: Tensor) -> Tensor:
    """‖z‖₁, [B, D] → [B]."""
    return z.float().abs().sum(dim=1)


def l2_norm(z: Tensor) -> Tensor:
    """‖z‖₂, [B, D] → [B]; its gradient at 0 is 0."""
    return torch.linalg.vector_norm(z.float(), dim=1)


NORMS = {"pseudo-huber": pseudo_huber, "l1": l1_norm, "l2": l2_norm, "l2-squared": squared_norm}


def minus_log_one_minus_exp(h: Tensor) -> Tensor:
    """−log(1 − exp(−h) + 1e-9) for h ≥ 0, exact in float32 at both ends, with finite gradients everywhere.

    Each branch sees only arguments that it can take: a plain `where` would give NaN gradients at h = 0.
    """
    small = h < math.log(2)
    near = -torch.log(EPS - torch.expm1(-torch.where(small, h, 1.0)))
    far = -torch.log1p(EPS - torch.exp(-torch.where(small, 1.0, h)))
    return torch.where(small, near, far)


def hsc(norm: str = "pseudo-huber") -> Objective:
    """Hypersphere classification (Eq. 2 with l = exp(−h)): h for nominal, −log(1 − exp(−h)) for OE; score h.

    `norm`: h, one of `NORMS` (Appendix D, Table 3).
    """
    if norm not in NORMS:
        raise unknown("norm of hsc", norm, NORMS)
    h = NORMS[norm]

    def loss(out: Tensor, target: Tensor) -> Tensor:
        distance = h(out)
        return torch.where(target > 0, minus_log_one_minus_exp(distance), distance)

    name = "hsc" if norm == "pseudo-huber" else f"hsc:{norm}"
    return Objective(name, loss, h, guard_loss=-math.log(2 * EPS))


def deep_svdd() -> Objective:
    """Deep SVDD (Eq. 1, Ruff et al. 2018) with centre 0: ‖z‖² on nominal images alone; score ‖z‖²."""
    return Objective("deep-svdd", lambda out, target: squared_norm(out), squared_norm, uses_oe=False)


def deep_sad() -> Objective:
    """Deep SAD (Ruff et al. 2020) with centre 0 and η = 1: ‖z‖² for nominal, 1 / (‖z‖² + 1e-9) for OE; score ‖z‖²."""

    def loss(out: Tensor, target: Tensor) -> Tensor:
        distance = squared_norm(out)
        return torch.where(target > 0, 1 / (distance + EPS), distance)

    return Objective("deep-sad", loss, squared_norm, guard_loss=1 / (2 * EPS))


def _logit(out: Tensor) -> Tensor:
    return out.float().squeeze(1)


def _cross_entropy(out: Tensor, target: Tensor) -> Tensor:
    """log(1 + exp(±s)); unlike PyTorch's own, softplus keeps its digits where the loss is small, which Focal needs."""
    return F.softplus(torch.where(target > 0, -_logit(out), _logit(out)))


def bce() -> Objective:
    """Binary cross-entropy of nominal against OE (Eq. 2 with l = sigmoid); score: the logit."""
    return Objective("bce", _cross_entropy, _logit, output_width=1)


def focal(gamma: str = "2") -> Objective:
    """Focal loss (Lin et al. 2017) without α: (1 − p)^γ · BCE; score: the logit. p = exp(−BCE) in [1e-7, 1 − 1e-7]."""
    try:
        power = float(gamma)
    except ValueError:
        power = math.nan
    if not 0 <= power < math.inf:
        raise FastadError(f"focal's gamma must be a number of at least 0, found {gamma!r}: write focal:2, say")

    def loss(out: Tensor, target: Tensor) -> Tensor:
        cross_entropy = _cross_entropy(out, target)
        one_minus_p = (-torch.expm1(-cross_entropy)).clamp(1e-7, 1 - 1e-7)
        return one_minus_p**power * cross_entropy

    return Objective("focal" if power == 2 else f"focal:{power:g}", loss, _logit, output_width=1)


OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "hsc": hsc,
    "deep-svdd": deep_svdd,
    "deep-sad": deep_sad,
    "bce": bce,
    "focal": focal,
}

VARIED = ("hsc", "focal")


def find(name: str) -> Objective:
    """The objective of that name, or `name:parameter` for a variant ("hsc:l1", "focal:0.5"); else `FastadError`."""
    base, colon, parameter = name.partition(":")
    if base not in OBJECTIVES:
        raise unknown("objective", base, OBJECTIVES)
    if not colon:
        return OBJECTIVES[base]()
    if base not in VARIED:
        raise FastadError(f"objective {base} takes no parameter, found {name!r}: write {base}")
    return OBJECTIVES[base](parameter)
