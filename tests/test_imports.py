"""Imports point one way, along the flow of data; help needs none of the heavy ones."""

import ast
import subprocess
import sys
from pathlib import Path

import fastad

ORDER = (
    *("__init__", "errors", "seeds", "progress", "files", "remote", "workers", "tar", "encode", "card", "manifest"),
    *("stage", "text_column", "listing", "cuts", "in_place", "write", "shard", "reader", "verify", "synsets", "view"),
    *("inspect", "plan", "augment", "feed", "packed", "compiled", "pixels", "ahead", "faults", "external_source"),
    *("dali", "resident", "shared_images", "pipeline", "backbones", "networks"),
    *("objectives", "named", "recipe", "experiment", "ranks", "memory", "sets", "batch_picture", "run", "tune"),
    *("execution", "step_graph", "group", "warm", "verdict", "training", "checkpoint", "log", "evaluate", "outcome"),
    *("prepare", "train", "estimate", "score"),
    *("sweep_queue", "sweep_worker", "sweep_presence", "sweep_pool", "sweep_watch", "sweep", "rates", "forecast"),
    *("toy", "tables", "results", "measured", "published", "compare", "paper_tables", "paired", "coverage", "drawing"),
    *("figures", "paper_figures", "toy_figure", "words", "markup", "page", "report", "quickstart"),
    *("bench", "bench_gpu", "bench_loader", "roofline", "bench_step", "bench_shard", "bench_sweep", "options"),
    *("cli_bench", "cli_sweep", "cli", "__main__"),
)
LIGHT = {"manifest", "stage", "synsets", "view", "plan", "augment", "reader", "shard", "verify", "inspect"}

FOLDER = Path(fastad.__file__).parent


def imported(path: Path) -> set[str]:
    """The fastad modules that a file imports anywhere, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "fastad":
            parts = node.module.split(".")[1:]
            found |= {parts[0]} if parts else {alias.name for alias in node.names}
    return found & {file.stem for file in FOLDER.glob("*.py")}


def test_every_module_has_its_place() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} <= set(ORDER)


def test_modules_import_only_what_stands_before_them() -> None:
    for path in FOLDER.glob("*.py"):
        place = ORDER.index(path.stem)
        assert not [name for name in imported(path) if ORDER.index(name) >= place], path.name


def test_what_reads_and_selects_shards_needs_no_torch_dali_or_fsspec() -> None:
    modules = ", ".join(f"fastad.{name}" for name in sorted(LIGHT))
    code = f"import sys, {modules}; sys.exit(bool({{'torch', 'nvidia.dali', 'fsspec'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, fastad.cli; sys.exit(bool({'torch', 'numpy', 'sklearn', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
