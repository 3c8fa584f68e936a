"""Numbers of a batch in one piece of memory come out of it as they went in."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastad.packed import ALIGNED, Layout

CPU = torch.device("cpu")
SHAPES = st.lists(
    st.tuples(st.sampled_from(["int64", "int32", "float32"]), st.integers(1, 9), st.integers(1, 7)), min_size=1
)


def arrays_of(shapes: list[tuple[str, int, int]], seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {str(n): rng.integers(-(2**30), 2**30, sides).astype(kind) for n, (kind, *sides) in enumerate(shapes)}


@settings(max_examples=50, deadline=None)
@given(SHAPES)
def test_every_batch_comes_out_of_the_same_memory_as_it_went_in(shapes: list[tuple[str, int, int]]) -> None:
    layout = Layout.of(arrays_of(shapes, 0))
    memory = torch.zeros(layout.size, dtype=torch.uint8)
    shown = layout.unpacked(memory)
    for seed in (0, 1):
        arrays = arrays_of(shapes, seed)
        memory.copy_(layout.packed(arrays, CPU))
        assert list(shown) == list(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(shown[name].numpy(), array)
            assert shown[name].numpy().dtype == array.dtype
            assert shown[name].storage_offset() * shown[name].element_size() % ALIGNED == 0


def test_a_batch_of_another_shape_is_refused() -> None:
    layout = Layout.of({"noise": np.zeros(4, dtype=np.int64)})
    with pytest.raises(ValueError, match=r"noise is \(1,\), and in the batches before it \(4,\)"):
        layout.packed({"noise": np.zeros(1, dtype=np.int64)}, CPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_numbers_for_a_gpu_are_pinned_and_not_overwritten_before_they_are_copied() -> None:
    device, layout = torch.device("cuda"), Layout.of({"noise": np.zeros(2**16, dtype=np.int64)})
    memory = torch.zeros(64, layout.size, dtype=torch.uint8, device=device)
    torch.cuda.synchronize()
    torch.cuda._sleep(10**9)
    for number in range(64):  # all wait behind the sleep, and each batch's memory is free again
        packed = layout.packed({"noise": np.full(2**16, number)}, device)
        assert packed.is_pinned()
        memory[number].copy_(packed, non_blocking=True)
        del packed
    for number in range(64):
        assert (layout.unpacked(memory[number])["noise"] == number).all()
