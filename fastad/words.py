"""The sentences of a report: its title, the figures that stand out, what was found, what to mind.

Owns words alone; every figure in them is another module's.
Use: `paper_summary(compared_tables(found), found)`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fastad.coverage import Coverage, classes_of
from fastad.experiment import find_experiment
from fastad.measured import Measured, Place
from fastad.measured import class_means as seed_means
from fastad.paper_figures import NAMES
from fastad.paper_tables import ComparedTable, signed
from fastad.published import MEAN, published
from fastad.recipe import DataSpec
from fastad.run import RunResult
from fastad.tables import Groups, class_means, distinct, metric_over_seeds, percent, shared_seconds

Tiles = list[tuple[str, str]]


def sets_line(data: Iterable[DataSpec]) -> str:
    """Which sets stand against which."""
    pairs = distinct((each.nominal, " and ".join(each.oe)) for each in data)
    if len(pairs) == 1:
        ((nominal, oe),) = pairs
        return f"One class against the rest. Nominal: {nominal}, outlier exposure (OE): {oe or 'none'}."
    told = listed(f"{nominal} {f'with {oe}' if oe else 'alone'}" for nominal, oe in pairs)
    return f"One class against the rest. Nominal sets, with those for outlier exposure (OE): {told}."


def result_tiles(groups: Groups) -> Tiles:
    """The best AUROC of each recipe."""
    tiles = []
    for recipe, names in groups.classes.items():
        for best, mean in _ranking(groups, recipe)[:1]:
            over = f"mean of {len(names)} classes" if len(names) > 1 else f"class {names[0]}"
            tiles.append((f"{percent(mean)} %", f"{groups.label(recipe, 'AUROC')} of {best}, {over}"))
    return tiles


def cost_tiles(results: Sequence[RunResult]) -> Tiles:
    """How much was trained, and what it took."""
    experiments = distinct(result.recipe.partition("/")[0] for result in results)
    counts = {
        "experiments": len(experiments),
        "classes": len({(result.recipe.partition("/")[0], result.class_name) for result in results}),
        "objectives": len({result.objective for result in results}),
        "seeds": len({result.seed for result in results}),
    }
    sizes = ", ".join(f"{what}: {count}" for what, count in counts.items() if what != "experiments" or count > 1)
    devices = listed(distinct(_device(result.environment) for result in results))
    rate, stalled = np.median([(result.images_per_s, result.stall_share) for result in results], axis=0)
    return [
        (f"{len(results):,} run{'s' * (len(results) > 1)}", sizes),
        (_duration(sum(map(shared_seconds, results))), f"to train and test them all, on {devices}"),
        (f"{rate:,.0f} images/s", f"in training, {percent(stalled)} % of the time waiting for batches (medians)"),
    ]


def _ranking(groups: Groups, recipe: str) -> list[tuple[str, float]]:
    """The objectives that have every class of the recipe, with their mean AUROC, best first."""
    means = {name: mean.over_seeds.mean for name, mean in class_means(groups, recipe, "auroc").items()}
    return sorted(means.items(), key=lambda item: -item[1])


def _device(environment: Mapping[str, Any]) -> str:
    return f"{environment['cores']} CPU cores" if environment["device"] == "cpu" else str(environment["device"])


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def recipe_summary(groups: Groups, recipe: str, data: DataSpec) -> str:
    """A recipe's results in a few sentences."""
    names, ranking = groups.classes[recipe], _ranking(groups, recipe)
    several = len(names) > 1
    what = (
        f"Each of {len(names)} classes of {data.nominal} in turn" if several else f"Class {names[0]} of {data.nominal}"
    )
    oe = f"images of {' and '.join(data.oe)} as outlier exposure" if data.oe else "no outlier exposure"
    told = [f"{what} is nominal; detectors learn it with {oe} and have to find all other test images."]
    if not ranking:
        return f"{told[0]} No objective has been trained for every class yet."
    figures = listed(f"{percent(mean)} % with {name}" for name, mean in ranking)
    told.append(f"The AUROC is {figures}{', on average over the classes' * several}.")
    best = ranking[0][0]
    if several:
        auroc = {name: metric_over_seeds(groups.runs[recipe, name, best], "auroc").mean for name in names}
        ends = max(names, key=auroc.__getitem__), min(names, key=auroc.__getitem__)
        easiest, hardest = (f"{name} ({percent(auroc[name])} %)" for name in ends)
        told.append(f"For {best} the easiest class is {easiest}, the hardest {hardest}.")
    flagged = percent(class_means(groups, recipe, "fpr95")[best].over_seeds.mean)
    told.append(f"Where {best} finds 95 % of the anomalous images, it also flags {flagged} % of the nominal ones.")
    return " ".join(told)


def listed(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


# What the tables of means are of; and the tables whose every figure is counted: the others show the same ones again.
WHERE = {1: "CIFAR-10", 2: "ImageNet-30"}
DETAILED = (3, 5, 6)


def paper_tiles(tables: Iterable[ComparedTable]) -> Tiles:
    """The best mean of each experiment beside what the paper has, and how many figures agree."""
    tiles, compared = [], []
    for table in tables:
        if table.number in DETAILED:
            compared += table.cells()
        if table.number not in WHERE:
            continue
        cells = [(cell, method) for row in table.rows.values() for cell, method in zip(row, table.methods, strict=True)]
        found = [(float(np.mean(cell.ours)), cell.printed.mean, method.name) for cell, method in cells if cell.ours]
        if found:
            mean, paper, name = max(found)
            what = f"mean AUROC of {name} on {WHERE[table.number]}, the best; in the paper {paper:.1f} %"
            tiles.append((f"{mean:.1f} %", what))
    if compared:
        agree = sum(not cell.difference.disagrees for cell in compared if cell.difference)
        tiles.append((f"{agree} of {len(compared)}", "published figures that ours agree with, within noise"))
    return tiles


def paper_summary(tables: Sequence[ComparedTable], found: Measured) -> list[str]:
    """What of the paper's claims the results bear out, as figures."""
    told: list[str] = []
    for table in tables:
        if table.number in WHERE:
            told += _means_told(table)
    told += filter(None, (_few_images_told(*claim, found) for claim in FEW_IMAGES))
    told += filter(None, (_blur_told(*claim, found) for claim in BLURS))
    if apart := [line for table in tables if table.number in DETAILED for line in _disagreements(table)]:
        more = f" and {len(apart) - 6} more" if len(apart) > 6 else ""
        told.append(f"Beyond noise, ours differ from the paper's in {', '.join(apart[:6])}{more}.")
    return told


def toy_told(shares: Mapping[str, Mapping[str, float]]) -> list[str]:
    """How compact the decision regions of the toy experiment are, from `fastad.toy_figure.far_shares`."""
    told = []
    for setting, by_objective in shares.items():
        figures = listed(f"{100 * share:.1f} % of the far field by {name}" for name, share in by_objective.items())
        told.append(f"In the plane of Figure 1, setting “{setting}”, {figures} is taken for nominal.")
    return told


def _means_told(table: ComparedTable) -> Iterator[str]:
    figures = [
        f"{np.mean(cell.ours):.1f} % with {method.name} ({cell.printed.mean:.1f})"
        for cell, method in zip(table.rows[MEAN], table.methods, strict=True)
        if cell.ours
    ]
    if figures:
        yield f"On {WHERE[table.number]} the mean AUROC is {listed(figures)}; in brackets the paper's."


def _disagreements(table: ComparedTable) -> Iterator[str]:
    for row, cells in table.rows.items():
        for cell, method in zip(cells, table.methods, strict=True):
            if cell.difference and cell.difference.disagrees:
                where = f"“{row.replace('_', ' ')}”"
                yield f"{method.name} of {where} ({signed(cell.difference.value)}, Table {table.number})"


# Experiment, point, what that is in words, and the published method that so few images are said to reach.
FEW_IMAGES = (
    ("cifar10-oe-size", "oe_size=128", "128 OE images on CIFAR-10", "GT+ without OE", (1, 1)),
    ("imagenet30-oe-size", "oe_size=64", "64 OE images on ImageNet-30", "GT+ with OE", (2, 0)),
)


def _few_images_told(experiment: str, label: str, what: str, name: str, place: tuple[int, int], found: Measured) -> str:
    if not (figures := _means_at(found, experiment, label)):
        return ""
    number, column = place
    level = published(number).rows[MEAN][column].mean
    return f"With {what} the mean AUROC is {_figures(figures)}; {name} was published with {level:.1f} %."


BLURS = (
    ("imagenet30-oe-blur", "ImageNet-30"),
    ("cifar10-oe-blur", "CIFAR-10"),
    ("mnist-oe-blur", "MNIST"),
)


def _blur_told(experiment: str, where: str, found: Measured) -> str:
    if not (figures := _means_at(found, experiment, "oe_blur_sigma_px=32")):
        return ""
    return f"On {where} with OE images blurred by σ = 32 pixels the mean AUROC is {_figures(figures)}."


def _means_at(found: Measured, experiment: str, label: str) -> dict[str, float]:
    classes = classes_of(find_experiment(experiment))
    means = {
        NAMES[objective]: seed_means(found.get(Place(experiment, label, objective), {}), classes)
        for objective in ("hsc", "bce")
    }
    return {name: float(np.mean(seeds)) for name, seeds in means.items() if seeds}


def _figures(figures: Mapping[str, float]) -> str:
    return listed(f"{value:.1f} % with {name}" for name, value in figures.items())


def partial_note(parts: Iterable[Coverage]) -> str:
    """What a figure rests on, where experiments that it shows are not whole."""
    told = [f"{each.found:,} of {each.expected:,} trainings of {each.experiment.name}" for each in parts]
    return f" Partial: {listed(told)}." if told else ""


def notices(covered: Iterable[Coverage]) -> list[str]:
    """What a reader must know before comparing: experiments whose runs do otherwise than the experiment says."""
    return [
        f"{found.experiment.name} was run with {', '.join(found.changes)}, not as the experiment says."
        for found in covered
        if found.changes
    ]
