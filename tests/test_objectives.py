"""Losses against float64 formulas written here from PROTOCOL, with finite gradients; scores that do not saturate."""

import math
from collections.abc import Callable

import pytest
import torch

from fastad.errors import FastadError
from fastad.objectives import OBJECTIVES, find

Formula = Callable[[list[float]], float]


def norm2(z: list[float]) -> float:
    return sum(value * value for value in z)


def hsc(h: Formula) -> tuple[Formula, Formula, Formula]:
    return h, lambda z: -math.log(1 - math.exp(-h(z)) + 1e-9), h


def cross_entropy(sign: int) -> Formula:
    return lambda z: math.log1p(math.exp(-abs(z[0]))) + max(sign * z[0], 0.0)


def focal(gamma: float, sign: int) -> Formula:
    def loss(z: list[float]) -> float:
        p = min(max(math.exp(-cross_entropy(sign)(z)), 1e-7), 1 - 1e-7)
        return (1 - p) ** gamma * cross_entropy(sign)(z)

    return loss


FORMULAS: dict[str, tuple[Formula, Formula | None, Formula]] = {
    "hsc": hsc(lambda z: math.sqrt(norm2(z) + 1) - 1),
    "hsc:l1": hsc(lambda z: sum(abs(value) for value in z)),
    "hsc:l2": hsc(lambda z: math.sqrt(norm2(z))),
    "hsc:l2-squared": hsc(norm2),
    "deep-svdd": (norm2, None, norm2),
    "deep-sad": (norm2, lambda z: 1 / (norm2(z) + 1e-9), norm2),
    "bce": (cross_entropy(1), cross_entropy(-1), lambda z: z[0]),
    **{
        name: (focal(gamma, 1), focal(gamma, -1), lambda z: z[0])
        for name, gamma in (("focal", 2.0), ("focal:0", 0.0), ("focal:0.5", 0.5), ("focal:4", 4.0))
    },
}

SCALES = (1e-3, 0.05, 0.3, 0.7, 1.0, 3.0, 9.0)


def outputs(width: int) -> torch.Tensor:
    """A few directions at several lengths, float32 [n, width]."""
    directions = torch.randn(8, width, generator=torch.Generator().manual_seed(0))
    return torch.cat([scale * directions for scale in SCALES])


@pytest.mark.parametrize("name", FORMULAS)
def test_loss_and_score_equal_the_float64_formula(name: str) -> None:
    objective = find(name)
    assert objective.name == name
    out = outputs(objective.output_width or 32)
    nominal, oe, score = FORMULAS[name]
    for target, formula in ((0.0, nominal), (1.0, oe)):
        if formula is None:
            continue
        expected = torch.tensor([formula(z) for z in out.double().tolist()])
        found = objective.loss(out, torch.full((len(out),), target))
        assert found.shape == (len(out),)
        assert found.dtype == torch.float32
        # −log(1 − e^−h) falls to e^−h, which float32 holds to 1e-7 of it, but for the 1e-9 inside the logarithm.
        torch.testing.assert_close(found, expected.float(), rtol=2e-5, atol=1e-9)
    expected = torch.tensor([score(z) for z in out.double().tolist()])
    torch.testing.assert_close(objective.score(out), expected.float(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("target", [0.0, 1.0])
@pytest.mark.parametrize("length", [0.0, 1e-30, 1e-12, 1e-5, 1e-2, 1.0, 30.0, 1e4, 1e9])
def test_losses_and_gradients_are_finite_at_every_length(name: str, target: float, length: float) -> None:
    objective = find(name)
    width = objective.output_width or 32
    for direction in (1.0, -1.0):
        out = torch.full((2, width), direction * length / math.sqrt(width), requires_grad=True)
        loss = objective.loss(out, torch.full((2,), target))
        loss.sum().backward()
        assert torch.isfinite(loss).all()
        assert out.grad is not None
        assert torch.isfinite(out.grad).all()


@pytest.mark.parametrize("name", [name for name, formulas in FORMULAS.items() if formulas[1] is not None])
@pytest.mark.parametrize("target", [0.0, 1.0])
def test_gradients_equal_central_differences_of_the_formula(name: str, target: float) -> None:
    objective = find(name)
    out = outputs(objective.output_width or 4)[8:].requires_grad_()
    objective.loss(out, torch.full((len(out),), target)).sum().backward()
    formula = FORMULAS[name][int(target)]
    assert formula is not None
    assert out.grad is not None
    for z, gradient in zip(out.detach().double().tolist(), out.grad[:, 0].tolist(), strict=True):
        step = 1e-6 * max(1.0, abs(z[0]))
        up, down = [z[0] + step, *z[1:]], [z[0] - step, *z[1:]]
        assert gradient == pytest.approx((formula(up) - formula(down)) / (2 * step), rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("name", FORMULAS)
def test_scores_rank_far_images_without_ties(name: str) -> None:
    objective = find(name)
    width = objective.output_width or 32
    out = torch.linspace(20, 60, 500)[:, None].repeat(1, width)
    assert (objective.score(out).diff() > 0).all()


@pytest.mark.parametrize("name", FORMULAS)
def test_scores_are_float32_whatever_the_network_gives(name: str) -> None:
    objective = find(name)
    out = outputs(objective.output_width or 32).bfloat16()
    assert objective.score(out).dtype == objective.loss(out, torch.zeros(len(out))).dtype == torch.float32


def test_only_deep_svdd_does_without_oe() -> None:
    assert [name for name in OBJECTIVES if not find(name).uses_oe] == ["deep-svdd"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hcs", "unknown objective 'hcs': did you mean hsc"),
        ("hsc:l3", "unknown norm of hsc 'l3': did you mean l2 or l1"),
        ("bce:2", "objective bce takes no parameter, found 'bce:2': write bce"),
        ("focal:x", "focal's gamma must be a number of at least 0, found 'x'"),
        ("focal:-1", "focal's gamma must be a number of at least 0, found '-1'"),
    ],
)
def test_unknown_names_are_said(name: str, message: str) -> None:
    with pytest.raises(FastadError, match=message):
        find(name)
