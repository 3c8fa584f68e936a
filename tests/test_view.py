"""Views: selections of rows that partition, nest and refuse."""

from dataclasses import replace

import numpy as np
import pytest

from fastad.errors import FastadError
from fastad.manifest import Manifest
from fastad.synsets import synsets
from fastad.view import View, classes_in, select, stand_in


def test_classes_partition_a_split(blobs: Manifest) -> None:
    parts = [select(View("train", (name,)), blobs) for name in blobs.classes]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(120))
    for index, rows in enumerate(parts):
        assert (blobs.class_index[rows] == index).all()


def test_only_classes_with_images_of_a_split_are_in_it(blobs: Manifest) -> None:
    assert classes_in("train", blobs) == blobs.classes
    without = np.where(np.arange(len(blobs.class_index)) < 120, blobs.class_index % 2, blobs.class_index)
    assert classes_in("train", replace(blobs, class_index=without)) == blobs.classes[:2]
    assert classes_in("test", replace(blobs, class_index=without)) == blobs.classes


def test_sizes_are_nested_without_repeats_and_differ_by_seed(extras: Manifest) -> None:
    whole = select(View(size=90, seed=3), extras)
    assert len(np.unique(whole)) == 90
    for size in (1, 2, 64):
        np.testing.assert_array_equal(select(View(size=size, seed=3), extras), whole[:size])
    assert not np.array_equal(whole, select(View(size=90, seed=4), extras))


def test_class_counts_are_nested_and_every_class_is_drawn_by_some_seed(extras: Manifest) -> None:
    first = []
    for seed in range(40):
        drawn = [set(extras.class_index[select(View(class_count=k, seed=seed), extras)]) for k in (1, 2, 3, 4)]
        assert [len(classes) for classes in drawn] == [1, 2, 3, 4]
        assert drawn[0] < drawn[1] < drawn[2] < drawn[3]
        first += list(drawn[0])
    assert set(first) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (View(classes=("midle",)), "unknown class of blobs 'midle': did you mean middle"),
        (View("val"), "no split 'val'"),
        (View(size=121), "121 images asked of .*, which has 120: ask for 1 to 120"),
        (View(size=0), "0 images asked"),
        (View(class_count=4), "4 classes asked of .*: ask for 1 to 3"),
    ],
)
def test_what_cannot_be_selected_is_said(view: View, message: str, blobs: Manifest) -> None:
    with pytest.raises(FastadError, match=message):
        select(view, blobs)


def test_excluded_classes_and_images_are_never_drawn(extras: Manifest) -> None:
    rows = select(View(exclude_classes=("b", "d")), extras)
    assert set(extras.class_index[rows]) == {0, 2}
    for seed in range(5):
        drawn = select(View(exclude_classes=("b",), class_count=2, seed=seed), extras)
        assert 1 not in extras.class_index[drawn]
    hashes = extras.content_hash[[3, 50]]
    left = select(View(size=88, seed=1), extras, exclude_hashes=hashes)
    assert sorted({*range(90)} - set(left)) == [3, 50]
    with pytest.raises(FastadError, match="89 images asked"):
        select(View(size=89), extras, exclude_hashes=hashes)


def test_synsets_on_a_list_are_never_drawn_and_a_set_may_lack_them(extras: Manifest) -> None:
    from dataclasses import replace

    # Tench and acorn; an acorn is also of ImageNet-30, and two ids are of no challenge.
    ours = replace(extras, classes=("n01440764", "n12267677", "n00000001", "n15075142"))
    for name, left in (("imagenet1k", {2, 3}), ("imagenet30", {0, 2, 3})):
        rows = select(View(exclude_synsets=(name,)), ours)
        assert set(ours.class_index[rows]) == left
        np.testing.assert_array_equal(rows, select(View(classes=tuple(ours.classes[index] for index in left)), ours))
        drawn = select(View(exclude_synsets=(name,), class_count=2, seed=3), ours)
        assert set(ours.class_index[drawn]) <= left
    both = select(View(exclude_synsets=("imagenet30",), exclude_classes=("n00000001",)), ours)
    assert set(ours.class_index[both]) == {0, 3}
    np.testing.assert_array_equal(
        select(View(exclude_synsets=("imagenet1k",), size=9), extras), select(View(size=9), extras)
    )
    only = replace(extras, classes=synsets("imagenet1k")[:4])
    for count in (None, 1):
        with pytest.raises(FastadError, match="no train images of this split but excluded ones: .* or exclude less"):
            select(View(exclude_synsets=("imagenet1k",), class_count=count), only)
    with pytest.raises(FastadError, match="unknown list of synsets 'imagenet': did you mean imagenet"):
        select(View(exclude_synsets=("imagenet",)), ours)


def test_hashes_stand_in_others_as_in_a_set_of_them() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 500, dtype=np.uint64)
    others = np.concatenate([hashes[::7], rng.integers(0, 2**64, 90, dtype=np.uint64)])
    ends = np.array([0, 2**64 - 1], dtype=np.uint64)
    for among in (others, others[:1], np.concatenate([others, ends]), others[:0]):
        wanted = np.concatenate([hashes, ends])
        assert stand_in(wanted, among).tolist() == [value in set(among.tolist()) for value in wanted.tolist()]


def test_images_of_no_class_are_in_every_view_that_names_no_class(extras: Manifest) -> None:
    from dataclasses import replace

    some = replace(extras, class_index=np.where(np.arange(90) < 10, -1, extras.class_index))
    assert len(select(View(), some)) == 90
    assert set(range(10)) <= set(select(View(exclude_classes=("a",)), some))
    assert not set(range(10)) & set(select(View(classes=("a", "b", "c", "d")), some))
    assert not set(range(10)) & set(select(View(class_count=4), some))


def test_an_empty_view_is_said(blobs: Manifest) -> None:
    from dataclasses import replace

    without = replace(blobs, class_index=np.where(blobs.class_index == 1, 0, blobs.class_index))
    with pytest.raises(FastadError, match="has no train images of classes middle: choose another class, set or split"):
        select(View("train", ("middle",)), without)
