"""Tables before any layout: what was spent, and means over the points of a grid."""

import pytest
from made_runs import make_result, make_results

from fastad.tables import Row, cost_table, grid_table, group_runs, regime_spans, shared_seconds, tables


def figures(row: Row) -> list[str]:
    return [cell.figure for cell in row.cells]


def test_cost_is_summed_over_an_objectives_runs_and_over_all() -> None:
    results = [
        make_result("0", objective, seed, 0.9, recipe, seconds={"train": 1800.0, "score": 36.0}, group_size=2)
        for recipe in ("sweep/a=1", "sweep/a=2")
        for objective in ("hsc", "bce")
        for seed in (1, 2)
    ]
    table = cost_table(results)
    assert [row.label for row in table.rows] == ["hsc", "bce", "all"]
    hsc, _, every = (figures(row) for row in table.rows)
    # Four runs of 1,500 images/s for half an hour; their group of two took 1,836 s.
    assert hsc[:5] == ["4", "10.8", "1.02", "1,800.0", "36.0"]
    assert every[:3] == ["8", "21.6", "2.04"] and table.rows[-1].is_mean
    assert all(len(row.cells) == len(table.header) - 1 for row in table.rows)
    assert sum(map(shared_seconds, results)) == pytest.approx(8 * 918)


def test_costs_of_several_experiments_are_told_apart() -> None:
    table = cost_table([make_result("0", "hsc", 1, 0.9, recipe) for recipe in ("a/x=1", "b")])
    assert [row.label for row in table.rows] == ["a / hsc", "b / hsc", "all"]


def test_a_grid_shows_means_over_classes_at_each_point() -> None:
    results = [
        make_result(name, "hsc", seed, level + 0.01 * seed, f"sweep/size={size}")
        for size, level in ((1, 0.7), (16, 0.8))
        for name in ("0", "1")
        for seed in (1, 2)
    ]
    table = grid_table(group_runs(results), "sweep")
    assert [(row.label, row.cells[0].figure) for row in table.rows] == [
        ("size=1", "71.5 ± 0.71"),
        ("size=16", "81.5 ± 0.71"),
    ]


def test_nothing_makes_no_table_and_plain_tables_have_no_regimes() -> None:
    assert tables(group_runs([])) == []
    assert regime_spans(tables(group_runs(make_results()))[0]) == []
