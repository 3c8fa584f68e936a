"""What was measured, by experiment, point, objective, class and seed."""

from made_runs import make_result

from fastad.measured import Place, by_seed, class_means, measured


def test_a_result_tells_its_experiment_and_its_point() -> None:
    found = measured(
        [
            make_result("0", "hsc", 1, 0.9, "smoke/oe_size=16"),
            make_result("3", "hsc", 1, 0.8, "smoke/oe_size=16"),
            make_result("0", "bce", 2, 0.7, "plain"),
        ]
    )
    assert set(found) == {Place("smoke", "oe_size=16", "hsc"), Place("plain", "", "bce")}
    assert found[Place("smoke", "oe_size=16", "hsc")] == {"0": {1: 90.0}, "3": {1: 80.0}}


def test_means_are_over_seeds_that_every_class_has() -> None:
    values = {"a": {1: 90.0, 2: 80.0, 3: 70.0}, "b": {2: 100.0, 1: 70.0}}
    assert class_means(values, ["a", "b"]) == [80.0, 90.0]
    assert by_seed(values, ["a", "b"])[2].tolist() == [80.0, 100.0]
    assert class_means(values, ["a", "c"]) == [] and class_means(values, []) == []
