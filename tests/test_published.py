"""The published numbers: they are the paper's, add up, and Table 6 is in the classes' own order."""

import math

import numpy as np
import pytest

from fastad.published import MEAN, PublishedTable, published, seed_std


def column(table: PublishedTable, name: str) -> list[float]:
    place = [method.name for method in table.methods].index(name)
    return [table.rows[row][place].mean for row in table.classes]


@pytest.mark.parametrize(
    ("number", "rows", "methods"), [(1, 1, 8), (2, 1, 6), (3, 2, 4), (4, 11, 11), (5, 11, 4), (6, 31, 4)]
)
def test_tables_are_whole_and_name_their_source(number: int, rows: int, methods: int) -> None:
    table = published(number)
    assert (len(table.rows), len(table.methods)) == (rows, methods)
    assert all(len(row) == methods for row in table.rows.values())
    assert f"arXiv:2006.00339), Table {number}" in table.source


def test_known_cells() -> None:
    assert published(5).rows["bird"][1] == (92.7, 0.27)
    assert published(3).rows["with"][published(3).column("hsc")].mean == 96.1
    assert published(2).rows[MEAN][3].mean == 56.1 and published(2).methods[3].name == "Focal*"
    assert not published(2).methods[3].objective


@pytest.mark.parametrize("number", [4, 5, 6])
def test_the_printed_means_are_those_of_the_classes(number: int) -> None:
    table = published(number)
    for place, printed in enumerate(table.rows[MEAN]):
        means = [table.rows[name][place].mean for name in table.classes]
        assert printed.mean == pytest.approx(np.mean(means), abs=0.11)
        if not math.isnan(printed.std):
            assert printed.std == pytest.approx(np.std(means), abs=0.06)  # over n or n − 1


def test_table_1_and_2_are_the_means_of_4_5_and_6() -> None:
    for single, by_class in ((1, 4), (1, 5), (2, 6)):
        for place, method in enumerate(published(by_class).methods):
            if method.objective:
                mean = published(single).rows[MEAN][published(single).column(method.objective)].mean
                assert mean == published(by_class).rows[MEAN][place].mean


def test_table_6_is_put_back_into_the_order_of_its_classes() -> None:
    table = published(6)
    bce, focal, dsad = (column(table, name) for name in ("BCE", "Focal", "DSAD"))
    assert np.corrcoef(bce, focal)[0, 1] == pytest.approx(0.994, abs=0.001)
    as_printed = sorted(range(30), key=str)  # line i of the paper holds the figure of this class
    assert np.corrcoef(bce, [focal[place] for place in as_printed])[0, 1] == pytest.approx(0.17, abs=0.01)
    # The paper's first lines of DSAD: acorn, airliner, ambulance, american alligator.
    assert [dsad[place] for place in as_printed[:4]] == [98.5, 99.6, 99.0, 92.9]


def test_the_spread_over_seeds_of_a_mean_follows_from_its_classes() -> None:
    table = published(5)
    stds = [table.rows[name][table.column("hsc")].std for name in table.classes]
    assert seed_std(1, MEAN, "hsc") == pytest.approx(math.sqrt(sum(std**2 for std in stds)) / 10)
    assert seed_std(4, "bird", "bce") == 0.14
    assert math.isnan(seed_std(3, "with", "hsc"))
