"""Functions that torch.compile compiles, each with a limit of its own on how often it is compiled anew.

Owns nothing else: torch.compile keeps what it makes of a function with its code, which all closures of one `def` share,
and takes eight variants of it. The ninth objective or size in a process that is kept warm would be an error where whole
graphs are asked for, and elsewhere run uncompiled.
Use: `loss = compiled_apart(loss, fullgraph=True)`.
"""

from collections.abc import Callable
from types import FunctionType
from typing import ParamSpec, TypeVar

import torch

Arguments = ParamSpec("Arguments")
Value = TypeVar("Value")


def compiled_apart(function: Callable[Arguments, Value], *, fullgraph: bool) -> Callable[Arguments, Value]:
    """The function, a `def` or a lambda, compiled for fixed shapes; its variants count with no other's. `fullgraph`: as
    one graph, or it is an error."""
    assert isinstance(function, FunctionType)
    name, defaults, closure = function.__name__, function.__defaults__, function.__closure__
    own = FunctionType(function.__code__.replace(), function.__globals__, name, defaults, closure)
    own.__kwdefaults__ = function.__kwdefaults__
    return torch.compile(own, fullgraph=fullgraph, dynamic=False)
