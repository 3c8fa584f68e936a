"""Variants of one closure do not use up those of another."""

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastad.compiled import compiled_apart


def adding(number: float) -> Callable[[Tensor], Tensor]:
    def added(values: Tensor, *, times: float = 2.0) -> Tensor:
        return values * times + number

    return added


@pytest.mark.filterwarnings("ignore")  # the compiler's own dependencies warn, differently with every release
def test_many_closures_of_one_function_are_compiled_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's own limit is eight of all, and then an error."""
    made: list[int] = []

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        made.append(len(inputs))
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counting))
    compiled = [compiled_apart(adding(float(number)), fullgraph=True) for number in range(12)]
    for _ in range(2):
        for number, add in enumerate(compiled):
            assert add(torch.ones(3)).tolist() == [2.0 + number] * 3
    assert len(made) == 12
