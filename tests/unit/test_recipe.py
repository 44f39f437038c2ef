"""A recipe says where each value came from, and refuses what it does not know."""

from pathlib import Path
from typing import get_args

import pytest
from memedit.cli.options import read_recipe
from memedit.config.layers import default_layers, layer_range, layers_of, layers_text, unpublished
from memedit.config.methods import METHODS, Name
from memedit.config.presets import PRESETS, SHAPES, foreign_preset, preset
from memedit.config.recipe import LARGEST_COUNT, LARGEST_SEED, Recipe
from memedit.config.resolve import RENAMED, Source, flatten, known_keys, resolve
from memedit.errors import RecipeError


def test_the_stronger_source_wins_and_is_named() -> None:
    recipe, sources = resolve([("file", {"method.ridge": 2.0, "seed": 3}), ("flag", {"method.ridge": 5.0})])
    assert recipe.method.ridge == 5.0
    assert (sources["method.ridge"], sources["seed"], sources["chunk"]) == ("flag", "file", "default")


def test_an_unknown_knob_is_refused_with_the_nearest() -> None:
    with pytest.raises(RecipeError) as caught:
        resolve([("flag", {"method.rigde": 1.0})])
    assert "method.rigde" in caught.value.message
    assert "method.ridge" in caught.value.hint


@pytest.mark.parametrize("source", ["file", "environment", "flag"])
def test_a_setting_of_version_0_1_is_read_under_its_name_now(source: Source) -> None:
    assert set(RENAMED.values()) <= set(known_keys()) and not set(RENAMED) & set(known_keys())
    for name in ("target.redo", "target.retry"):
        recipe, sources = resolve([(source, {name: 2})])
        assert (recipe.target.retry, sources["target.retry"]) == (2, source)
    assert resolve([("file", {"target.redo": 2}), ("flag", {"target.retry": 1})])[0].target.retry == 1
    with pytest.raises(RecipeError, match=r"target\.retry = -1"):
        resolve([(source, {"target.redo": -1})])


def test_a_value_that_cannot_be_names_its_key_and_source() -> None:
    with pytest.raises(RecipeError, match=r"method\.ridge = -1\.0 \(from flag\)"):
        resolve([("flag", {"method.ridge": -1.0})])


def test_every_whole_number_is_bounded_and_a_number_of_tokens_is_not_negative() -> None:
    counts = [name for name, value in flatten(Recipe().model_dump()).items() if type(value) is int]
    counts = [*counts, "moments.tokens", "trace.window"]
    assert {"eval.drift_tokens", "contexts.tokens", "chunk", "seed"} <= set(counts)
    for name in counts:
        largest = LARGEST_SEED if name.endswith("seed") else LARGEST_COUNT
        for refused in (largest + 1, 10**20):
            with pytest.raises(RecipeError, match=rf"{name} = {refused}"):
                resolve([("flag", {name: refused})])
        assert flatten(resolve([("flag", {name: largest})])[0].model_dump())[name] == largest
    for refused in ((-5,), (0, LARGEST_COUNT + 1)):
        with pytest.raises(RecipeError, match=r"eval\.prefixes"):
            resolve([("flag", {"eval.prefixes": refused})])
    assert resolve([("flag", {"eval.prefixes": [0, LARGEST_COUNT]})])[0].eval.prefixes == (0, LARGEST_COUNT)


@pytest.mark.parametrize("prompt", ["The language is", "{} and {} speak", ""])
def test_a_prompt_to_keep_needs_its_subject_once(prompt: str) -> None:
    assert resolve([("flag", {"polish.keep": ["{} speaks"]})])[0].polish.keep == ("{} speaks",)
    with pytest.raises(RecipeError, match=r"polish\.keep.*where the subject stands"):
        resolve([("flag", {"polish.keep": ["{} speaks", prompt]})])


@pytest.mark.parametrize("name", [["rome", "memit"], [1], 5, None, True])
def test_a_method_that_is_no_name_is_refused_and_a_preset_leaves_that_to_the_recipe(name: object) -> None:
    for layer in ({}, preset("gpt2-xl", name)):
        with pytest.raises(RecipeError, match=r"method\.name = "):
            resolve([("preset", layer), ("flag", {"method.name": name})])
    assert resolve([("preset", preset("gpt2-xl", "rome")), ("flag", {"method.name": "rome"})])[0].method.name == "rome"


def test_a_ridge_not_given_is_the_methods_own() -> None:
    for name, method in METHODS.items():
        for given in ({}, {"method.ridge": None}):
            recipe, _ = resolve([("flag", {"method.name": name, **given})])
            assert recipe.method.ridge == method.ridge
        assert resolve([("flag", {"method.name": name, "method.ridge": 0.5})])[0].method.ridge == 0.5
    assert get_args(Name) == tuple(METHODS)
    with pytest.raises(RecipeError, match=r"method\.name = 'romme'"):
        resolve([("flag", {"method.name": "romme"})])


def test_methods_of_one_layer_take_the_middle_of_the_default() -> None:
    for n_layers in (1, 6, 28, 48):
        layers = layers_of("depth", (n_layers, 8, 32))
        (one,) = layers_of("depth", (n_layers, 8, 32), single=True)
        assert abs((one - layers[0]) - (layers[-1] - one)) <= 1
    assert layers_of("1-3", (6, 8, 32), single=True) == [1, 2, 3]


def test_layers_count_from_zero_and_include_both_ends() -> None:
    assert layer_range("1-3", 6) == [1, 2, 3]
    assert layer_range("5", 6) == [5]
    for wrong in ("6", "3-1", "a", "", "1-6", "9" * 5000, "1-" + "9" * 5000):
        with pytest.raises(RecipeError):
            layer_range(wrong, 6)


def test_default_layers_stay_in_the_model() -> None:
    for n_layers in range(1, 100):
        layers = default_layers(n_layers)
        assert layers and layers[0] >= 0 and layers[-1] < n_layers
        assert layers == list(range(layers[0], layers[-1] + 1))


@pytest.mark.parametrize(
    ("n_layers", "layers"),
    [(2, "0-1"), (6, "0-2"), (8, "0-2"), (12, "1-3"), (15, "2-4"), (16, "3-5"), (18, "3-6"), (28, "3-8"), (30, "4-9")],
)
def test_the_default_layers_of_a_depth(n_layers: int, layers: str) -> None:
    assert layers_text(default_layers(n_layers)) == layers


def test_where_output_goes_is_no_part_of_the_digest() -> None:
    recipe, _ = resolve([("flag", {"output.dir": "a"})])
    assert recipe.digest == Recipe().digest
    assert resolve([("flag", {"seed": 1})])[0].digest != Recipe().digest


@pytest.mark.parametrize("name", ["memory", "output.max_shard_size"])
def test_a_size_has_no_more_digits_than_any_disk(name: str) -> None:
    recipe, _ = resolve([("flag", {name: "9" * 18 + ".5TB"})])
    assert (recipe.memory_limit or recipe.output.max_shard) == int(float("9" * 18 + ".5") * 10**12)
    for wrong in ("9" * 400 + "GB", "1." + "9" * 400, "9" * 19):
        with pytest.raises(RecipeError, match=rf"{name} = '"):
            resolve([("flag", {name: wrong})])


@pytest.mark.parametrize("name", ["method.layers", "memory", "output.dir", "model.revision", "output.max_shard_size"])
@pytest.mark.parametrize("written", ["5", "20000000000", "0123", "007", "1.10"])
def test_a_number_for_a_text_is_the_text_as_it_was_written(name: str, written: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(f"{name}: {written}\n")
    for config, sets in ((str(file), None), (None, [f"{name}={written}"])):
        recipe, _ = read_recipe(config, sets, {})
        assert flatten(recipe.model_dump())[name] == written
    # True and false are no texts, and neither is a list.
    for wrong in ("true", "no", "[5]"):
        with pytest.raises(RecipeError, match=name):
            read_recipe(None, [f"{name}={wrong}"], {})


def test_numbers_dates_and_quotes_are_read_as_they_were_meant() -> None:
    sets = ["seed=0123", "method.ridge=1.50", "contexts.openings=[1984, 007]", "eval.prefixes=[0, 050]"]
    sets += ["model.revision=2024-01-01", "output.dir='true'", "memory=null", "trace.noise=3"]
    recipe, _ = read_recipe(None, sets, {})
    assert (recipe.seed, recipe.method.ridge, recipe.eval.prefixes) == (123, 1.5, (0, 50))
    assert (recipe.model.revision, recipe.output.dir, recipe.memory) == ("2024-01-01", "true", None)
    assert recipe.contexts.openings == ("1984", "007") and recipe.trace.noise == 3.0


def test_a_nested_file_flattens_to_dotted_keys() -> None:
    assert flatten({"method": {"ridge": 2}, "seed": 1}) == {"method.ridge": 2, "seed": 1}
    assert flatten({"method.layers": "1", "method": {"ridge": 2}}) == {"method.layers": "1", "method.ridge": 2}
    # A name that YAML reads as a number is as unknown as any other.
    for tree in ({5: 3}, {"method": {5: 3}}):
        with pytest.raises(RecipeError, match="no setting"):
            resolve([("file", flatten(tree))])  # type: ignore[arg-type]


def test_a_setting_that_is_given_twice_is_refused() -> None:
    for tree in (
        {"method.ridge": 3, "method": {"ridge": 5}},
        {"method": {"ridge": 3}, "method.ridge": 5},
        {"method": {"ridge": 3}, "seed": 1, "method.ridge": 5},
    ):
        with pytest.raises(RecipeError, match=r"method\.ridge is set twice, to 3 and to 5"):
            flatten(tree)
    with pytest.raises(RecipeError, match=r"target\.redo and target\.retry are one setting"):
        resolve([("file", {"target.retry": 1, "target.redo": 2})])


def test_an_empty_section_sets_nothing_and_a_setting_that_is_null_is_kept() -> None:
    assert flatten({"method": None, "seed": 1}) == {"seed": 1}
    assert flatten({"method": {"ridge": None}, "memory": None}) == {"method.ridge": None, "memory": None}
    assert resolve([("file", flatten({"method": None}))])[0] == Recipe()
    with pytest.raises(RecipeError, match="no setting 'methods'"):  # an unknown name is one, null or not
        resolve([("file", flatten({"methods": None}))])


def test_every_preset_is_a_recipe_and_yields_to_a_file() -> None:
    for name in PRESETS:
        recipe, sources = resolve([("preset", preset(name)), ("file", {"target.steps": 3})])
        assert recipe.target.steps == 3
        assert sources["method.layers"] == "preset"


def test_a_presets_ridge_is_memits_alone() -> None:
    for name in PRESETS:
        assert "method.ridge" in preset(name)
        for method, kind in METHODS.items():
            recipe, _ = resolve([("preset", preset(name, method)), ("flag", {"method.name": method})])
            assert recipe.method.ridge == (preset(name)["method.ridge"] if method == "memit" else kind.ridge)
            assert ("-" in recipe.method.layers) == (not kind.single)


def test_an_unknown_preset_is_refused_with_the_nearest_or_those_there_are() -> None:
    for name, hint in (("gpt2xl", "did you mean gpt2-xl?"), ("x", "auto, gpt2-xl, gpt-j-6b")):
        with pytest.raises(RecipeError) as caught:
            preset(name)
        assert hint in caught.value.hint


def test_a_preset_on_a_model_of_another_shape_is_warned_of() -> None:
    assert set(SHAPES) == set(PRESETS)
    for name, shape in SHAPES.items():
        assert foreign_preset(name, shape) is None
        assert f"the preset {name} holds numbers for" in str(foreign_preset(name, (30, 576, 1536)))
    assert foreign_preset(None, (30, 576, 1536)) is None


def test_the_preset_auto_takes_published_layers_and_no_published_number() -> None:
    assert preset("auto") == {"method.layers": "published"}
    for name, shape in SHAPES.items():
        assert layers_text(layers_of("published", shape)) == preset(name)["method.layers"]
        assert layers_text(layers_of("published", shape, single=True)) == preset(name, "rome")["method.layers"]
        assert unpublished("published", shape) is None
    other = (30, 576, 1536)
    for single in (False, True):
        assert layers_of("published", other, single=single) == layers_of("depth", other, single=single)
    assert "chosen by depth" in str(unpublished("published", other))
    assert unpublished("3-8", other) is unpublished("depth", other) is None
    recipe, _ = resolve([("preset", preset("auto"))])
    assert recipe.model_copy(update={"method": Recipe().method}) == Recipe()


def test_how_weights_are_rounded_counts_in_the_digest() -> None:
    recipe, _ = resolve([("flag", {"output.rounding": "nearest"})])
    assert recipe.digest != Recipe().digest
    assert resolve([("flag", {"output.max_shard_size": "5GB"})])[0].digest == Recipe().digest


@pytest.mark.parametrize(
    ("settings", "polished"),
    [
        ({}, True),
        ({"method.name": "rome"}, True),
        ({"method.semantics": "reference"}, False),
        ({"method.semantics": "reference", "polish.siblings": 3}, False),
        ({"method.semantics": "reference", "polish.steps": 2}, True),
        (preset("gpt2-xl"), False),
    ],
)
def test_polish_is_no_part_of_what_was_published(settings: dict[str, object], polished: bool) -> None:
    recipe, _ = resolve([("flag", settings)])
    assert (recipe.polish.steps > 0) == polished
    assert Recipe.model_validate(recipe.model_dump()).digest == recipe.digest
