"""What is measured on a GPU beside batches: each work does what its name says, and figures are those of the rates."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from fastad import bench_loader, tune
from fastad.bench_gpu import Streamed, captured, decoders_differ, fastest_loader, gpu_figures, gpu_works
from fastad.bench_loader import CASES, SETS, measure_cases
from fastad.dali import Decoding, LoaderSpec
from fastad.manifest import open_set
from fastad.pipeline import Maker, Source, step_batches
from fastad.resident import hold

CPU = torch.device("cpu")
BATCH = 4


@pytest.fixture
def streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Streamed:
    """The benchmark's photographs, few of them, cropped to 32 px."""
    monkeypatch.setattr(bench_loader, "PHOTOGRAPHS", 24)
    monkeypatch.setattr(bench_loader, "BATCH", BATCH)
    case = CASES["photographs"]
    bench_loader._convert("photographs", SETS["photographs"](tmp_path), tmp_path / "home")
    small = replace(case, spec=replace(case.spec, crop_px=32))
    return bench_loader._streamed(small, open_set(tmp_path / "home" / "photographs"), CPU)


def test_every_work_makes_whole_batches_for_ever(streamed: Streamed) -> None:
    works = gpu_works("photographs", "cifar-lenet", streamed, LoaderSpec())
    decoded = [f"photographs_{name}" for name in ("decoded", "decoded_by_hardware", "decoded_by_cuda")]
    decoded.append("photographs_whole_by_hardware")
    assert list(works) == [*decoded, "photographs_trained", "photographs_trained_alone"]
    for work in works.values():
        with closing(work()) as batches:
            assert list(islice(batches, 5)) == [2 * BATCH] * 5
    assert list(gpu_works("photographs", "", streamed, LoaderSpec())) == decoded


def test_figures_are_shares_of_the_rates() -> None:
    medians = {"a": 900.0, "a_whole_by_hardware": 1_200.0, "a_trained": 380.0, "a_trained_alone": 400.0}
    assert gpu_figures("a", medians) == {"a_to_hardware_ratio": 0.75, "a_stall_share": 0.05}
    assert gpu_figures("a", medians | {"a_trained": 401.0})["a_stall_share"] == 0
    assert list(gpu_figures("a", {"a": 1.0, "a_whole_by_hardware": 2.0})) == ["a_to_hardware_ratio"]


def test_a_cpu_has_one_decoder_and_settings_of_its_own(streamed: Streamed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "SECONDS_A_SETTING", 0.01)
    loader = fastest_loader(streamed)
    assert loader.threads in tune._values("threads", tune._machine(CPU)["cores"])
    assert (loader.prefetch, loader.hw_decoder_load) == (1, 0.65)
    assert decoders_differ(streamed, loader) == 0


class AsItIs:
    """In the place of a capture: the work itself, and how often it was run."""

    def __init__(self) -> None:
        self.runs = 0

    def warm_up(self, work: Callable[[], None]) -> None:
        self.runs += 1
        work()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        return lambda: self.warm_up(work)


def test_images_of_captured_batches_are_made_each_time(streamed: Streamed, monkeypatch: pytest.MonkeyPatch) -> None:
    made, call = [], Maker.__call__
    monkeypatch.setattr(Maker, "__call__", lambda self, packed: made.append(call(self, packed)) or made[-1])
    sources = [
        Source(source.reader, hold(source.origin, stream.rows, Decoding(streamed.spec, CPU, LoaderSpec())))
        for stream, source in zip(streamed.plan.streams, streamed.sources, strict=True)
    ]
    capture = AsItIs()
    with closing(step_batches(streamed.plan, sources, streamed.spec, CPU)) as batches:
        assert list(captured(islice(batches, 6), capture)) == [2 * BATCH] * 6
    assert capture.runs == len(made) == 6
    assert not torch.equal(made[4], made[5])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpus_figures_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that the issue of the data engine asks of one."""
    for name, value in {"PHOTOGRAPHS": 256, "SMALL_IMAGES": 512, "BATCH": 32, "MEMORY_BATCHES": (2, 4)}.items():
        monkeypatch.setattr(bench_loader, name, value)
    monkeypatch.setattr("fastad.bench.SECONDS_A_MEASUREMENT", 0.2)
    monkeypatch.setattr(tune, "SECONDS_A_SETTING", 0.1)
    found = measure_cases(torch.device("cuda"), repeats=1, names=["photographs", "small"])
    rates = ("photographs", "photographs_whole_by_hardware", "photographs_trained_alone", "small", "small_by_dali")
    assert all(found[f"{name}_images_per_s"] > 0 for name in rates)
    assert found["photographs_to_hardware_ratio"] > 0
    assert 0 <= found["photographs_stall_share"] < 1
    assert 0 <= found["photographs_loader"]["hw_decoder_load"] <= 1
    assert found["photographs_decoders_differ_levels"] < 6
    assert found["device_mib"].keys() == found["resident_mib"].keys()
