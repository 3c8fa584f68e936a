"""Recipes: every field checked, every mistake named, nothing lost between writing and reading."""

from dataclasses import replace
from pathlib import Path

import pytest

from fastad.errors import FastadError
from fastad.listing import converter_names
from fastad.recipe import Recipe, dump, known_keys, load, parse, recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_load_and_survive_writing(name: str, tmp_path: Path) -> None:
    recipe = load(name)
    assert recipe.name == name
    path = tmp_path / "other-name.toml"
    path.write_text(dump(recipe))
    assert load(str(path)) == recipe


def test_the_mnist_recipes_are_the_papers() -> None:
    for name in ("mnist", "fashion-mnist"):
        recipe = load(name)
        assert (recipe.optim.epochs, recipe.optim.milestones) == (150, (50, 100))
        assert (recipe.optim.lr, recipe.optim.weight_decay) == (1e-3, 0.5e-6)
        assert (recipe.data.batch_nominal, recipe.data.batch_oe) == (128, 128)
    assert (load("mnist").data.oe, load("mnist").data.oe_transpose) == (("emnist",), True)


def test_every_set_that_a_shipped_recipe_names_has_a_converter() -> None:
    for name in recipe_names():
        data = load(name).data
        assert {data.nominal, *data.oe} <= set(converter_names())


def test_overrides_reach_every_field(recipe: Recipe) -> None:
    assert len(known_keys()) == 44
    found = load("digits", ["optim.lr=1e-4", "data.oe_size=64", "optim.milestones=[2, 3]", "data.oe=mnist", "name=x"])
    assert (found.optim.lr, found.data.oe_size, found.optim.milestones) == (1e-4, 64, (2, 3))
    assert (found.data.oe, found.name) == (("mnist",), "x")
    assert load("digits", ["data.oe=none"]).data.oe == ()
    assert load("digits", ["augment.std=0.5"]).augment.std == (0.5,)
    assert load("digits", ["objectives=bce"]).objectives == ("bce",)
    loader = load("digits", ["loader.threads=4", "loader.hw_decoder_load=0"]).loader
    assert (loader.threads, loader.prefetch, loader.hw_decoder_load) == (4, 0, 0.0)
    assert load("digits", ["loader.hw_decoder_load=none"]) == load("digits")
    assert load("digits").data.oe_exclude_synsets == ("imagenet1k",)
    assert load("digits", ["data.oe_exclude_synsets=imagenet30"]).data.oe_exclude_synsets == ("imagenet30",)
    assert load("digits", ["data.oe_exclude_synsets=[]"]).data.oe_exclude_synsets == ()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.epoch=3", r"unknown recipe key 'optim.epoch': did you mean optim\.epochs"),
        ("lr=3", "unknown recipe key 'lr'"),
        ("optim.epochs", "--set takes key=value, found 'optim.epochs'"),
        ("optim.epochs=ten", r"recipe key optim\.epochs must be of type int, found 'ten'"),
        ("optim.epochs=2.5", r"recipe key optim\.epochs must be of type int, found 2\.5"),
        ("optim.epochs=true", r"recipe key optim\.epochs must be of type int, found True"),
        ("optim.epochs=0", r"recipe key optim\.epochs must be at least 1, found 0"),
        ("optim.lr=-1", r"recipe key optim\.lr must be at least 0, found -1\.0"),
        ("optim.lr=nan", r"recipe key optim\.lr must be at least 0, found nan"),
        ("augment.flip_probability=1.5", "must be at least 0 and at most 1, found 1.5"),
        ("data.oe_order=windows", r"unknown data\.oe_order 'windows': did you mean window"),
        ("data.oe_exclude_synsets=imagenet3", r"unknown data\.oe_exclude_synsets 'imagenet3': did you mean imagenet30"),
        ("network=lenet", "unknown network 'lenet': did you mean mnist-lenet"),
        ("objectives=[]", "recipe key objectives is empty"),
        ('objectives=["hsd"]', "unknown objective 'hsd': did you mean hsc"),
        ("data.oe_size=0", r"recipe key data\.oe_size must be at least 1, found 0"),
    ],
)
def test_a_wrong_override_is_named(override: str, message: str) -> None:
    with pytest.raises(FastadError, match=message):
        load("digits", [override])


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FastadError, match="unknown recipe 'fashion': did you mean fashion-mnist"):
        load("fashion")
    with pytest.raises(
        FastadError, match=r"no recipe file nothing\.toml: give an existing \.toml file, or one of cifar10, digits"
    ):
        load("nothing.toml")
    path = tmp_path / "mine.toml"
    path.write_text("network = ")
    with pytest.raises(FastadError, match=r"mine\.toml is not valid TOML"):
        load(str(path))
    path.write_text('network = "mnist-lenet"\nobjectives = ["hsc"]\n[data]\nnominal = "digits"\n')
    with pytest.raises(FastadError, match=r"recipe key optim\.epochs is missing"):
        load(str(path))
    path.write_text("optim = 3")
    with pytest.raises(FastadError, match=r"recipe key (optim must be a table, found 3|network is missing)"):
        load(str(path))


def test_a_written_recipe_names_every_field_that_is_set(recipe: Recipe) -> None:
    text = dump(replace(recipe, name='with "quotes" and \\'))
    for key in known_keys():
        none = ("data.oe_size", "data.oe_classes", "data.oe_exclude_duplicates_of", "loader.hw_decoder_load")
        none += ("network_weights",)
        if key not in none:
            assert f"\n{key.rpartition('.')[2]} = " in "\n" + text
    import tomllib

    assert parse(tomllib.loads(text)).name == 'with "quotes" and \\'


def test_oe_sets_and_their_weights_must_fit() -> None:
    mixed = load("digits", ['data.oe=["letters", "mnist"]', "data.oe_weights=[3, 1]"])
    assert (mixed.data.oe, mixed.data.oe_weights) == (("letters", "mnist"), (3.0, 1.0))
    with pytest.raises(FastadError, match=r"data\.oe_weights has 2 numbers for 1 OE sets: give one each"):
        load("digits", ["data.oe_weights=[3, 1]"])
    with pytest.raises(FastadError, match=r"data\.oe_classes draws classes of one OE set"):
        load("digits", ['data.oe=["letters", "mnist"]', "data.oe_classes=3"])
    with pytest.raises(FastadError, match=r"unknown data\.oe_order 'permutation'"):
        load("digits", ["data.oe_order=permutation"])
