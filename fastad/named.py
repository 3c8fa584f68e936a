"""TOML files that fastad ships by name, recipes and experiments, or that users give by path.

Owns finding and reading them; what their keys mean is said where they are parsed.
Use: `stem, table = read_named("recipe", "cifar10")`.
"""

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from fastad.errors import FastadError, unknown


def shipped(kind: str) -> list[str]:
    """The names of the recipes ("recipe") or experiments ("experiment") that fastad ships."""
    files = resources.files(f"fastad.{kind}s").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def read_named(kind: str, name: str) -> tuple[str, dict[str, Any]]:
    """The name and the table of the one of that name, or of the TOML file at that path.

    Raises `FastadError` for an unknown one, and for a file that is not there or is not TOML.
    """
    known = shipped(kind)
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise FastadError(f"no {kind} file {path}: give an existing .toml file, or one of {', '.join(known)}")
        stem, text = path.stem, path.read_text()
    else:
        if name not in known:
            raise unknown(kind, name, known)
        stem, text = name, (resources.files(f"fastad.{kind}s") / f"{name}.toml").read_text()
    try:
        return stem, tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FastadError(f"{kind} {name} is not valid TOML: {error}") from error
