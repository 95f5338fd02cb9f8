"""Recipes as TOML: whatever can be chosen comes back, whatever cannot is refused."""

from __future__ import annotations

import os
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import kvant
from kvant import ActivationScheme, Recipe, Rule, WeightScheme
from kvant.quantization.schemes import Arithmetic


def records(kind: type) -> st.SearchStrategy[Any]:
    """Any scheme that its class accepts."""
    hints = get_type_hints(kind)
    choices: dict[str, st.SearchStrategy[Any]] = {"seed": st.integers(0, 2**32 - 1), "percentile": st.floats(50.5, 100)}
    for field in fields(kind):
        if field.name not in choices:
            choices[field.name] = st.sampled_from([4, None] if field.name == "group" else get_args(hints[field.name]))

    def make(chosen: dict[str, Any]) -> Any:
        try:
            return kind(**chosen)
        except kvant.RecipeError:
            return kind()

    return st.fixed_dictionaries({field.name: choices[field.name] for field in fields(kind)}).map(make)


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
arithmetics = st.sampled_from(get_args(Arithmetic))
rules = st.builds(
    Rule,
    text,
    st.none() | text.filter(lambda kind: kind != "none"),
    st.none() | records(WeightScheme),
    st.none() | records(ActivationScheme),
    st.none() | arithmetics,
)


def make_recipe(**chosen: Any) -> Recipe:
    """The recipe, with the observer that all ranges can be found from where the chosen one does not give them."""
    try:
        return Recipe(**chosen)
    except kvant.RecipeError:
        return Recipe(**chosen | {"observer": "histogram"})


recipes = st.builds(
    make_recipe,
    weights=records(WeightScheme),
    activations=records(ActivationScheme),
    rules=st.lists(rules, max_size=3).map(tuple),
    arithmetic=arithmetics,
    skip=st.lists(text, max_size=3).map(tuple),
    wide=st.lists(text, max_size=3).map(tuple),
    target_sqnr=st.none() | st.floats(-1e9, 1e9),
    observer=st.sampled_from(["histogram", "minmax", "moving_average"]),
    equalize=st.booleans(),
    center=st.booleans(),
    correct_bias=st.booleans(),
    compensate=st.booleans(),
    fine_weights=st.booleans(),
    samples=st.integers(1, 10**9),
    effort=st.sampled_from(["fast", "default", "best"]),
)


@given(recipes)
@example(Recipe(wide=("none",), rules=(Rule("none", weights=WeightScheme(bits=4)),)))
def test_every_recipe_comes_back(recipe: Recipe) -> None:
    text = recipe.to_toml()
    tomllib.loads(text)
    assert Recipe.from_toml(text) == recipe


def test_numbers_of_numpy() -> None:
    """A float64 is a float, and was written as 'np.float64(20.0)', which no reader knows."""
    recipe = Recipe(WeightScheme(bits=np.int64(4)), target_sqnr=np.float64(20), samples=np.int64(3), center=np.bool_(1))
    assert recipe == Recipe(WeightScheme(bits=4), target_sqnr=20.0, samples=3, center=True)
    assert Recipe.from_toml(recipe.to_toml()) == recipe
    with pytest.raises(kvant.RecipeError, match=r"target_sqnr=nan\): expected a number"):
        Recipe(target_sqnr=np.float32("nan"))  # type: ignore[arg-type]


def test_a_recipe_reads_like_this(tmp_path: Path) -> None:
    recipe = Recipe(
        WeightScheme(bits=4, granularity="group", group=32),
        rules=(Rule("head*", activations=ActivationScheme(16)), Rule(kind="linear", weights=WeightScheme(8))),
        target_sqnr=None,
    )
    assert recipe.to_toml() == (
        'target_sqnr = "none"\n\n[weights]\nbits = 4\ngranularity = "group"\ngroup = 32\n\n'
        '[[rules]]\npattern = "head*"\n\n[rules.activations]\nbits = 16\n\n'
        '[[rules]]\nkind = "linear"\n\n[rules.weights]\n'
    )
    recipe.save(tmp_path / "recipe.toml")
    assert Recipe.load(tmp_path / "recipe.toml") == recipe
    assert Recipe.from_toml("") == Recipe() and Recipe().to_toml() == "\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bits =", "no TOML"),
        ("surprise = 1", "no field 'surprise'"),
        ("[weights]\nwidth = 4", "WeightScheme has no field 'width'"),
        ("[weights]\nbits = 5", "bits=5"),
        ("[weights]\nbits = 4.0", "bits=4.0"),
        ("weights = 4", "weights=4"),
        ("[[weights]]\nbits = 4", "weights"),
        ("[rules]\nkind = 'conv'", "rules"),
        ("rules = [1]", "rules"),
        ("equalize = 'yes'", "equalize"),
        ("samples = 1.5", "samples"),
        ("samples = inf", "samples"),
        ("target_sqnr = nan", "target_sqnr"),
        ("target_sqnr = 1979-05-27", "target_sqnr"),
        ("wide = 'head'", "wide"),
        ("wide = [1]", "wide"),
    ],
)
def test_what_is_no_recipe_is_refused(text: str, message: str) -> None:
    with pytest.raises(kvant.RecipeError, match=message.replace(".", r"\.")):
        Recipe.from_toml(text)


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(kvant.RecipeError, match="recipe"):
        Recipe.load(path)
    path.write_text("samples = 0")
    with pytest.raises(kvant.RecipeError, match="recipe"):
        Recipe.load(path)
    with pytest.raises(kvant.SaveError):
        Recipe().save(tmp_path / "nowhere" / "recipe.toml")


def test_a_file_that_begins_with_a_mark(tmp_path: Path) -> None:
    """As editors of Windows write them."""
    (tmp_path / "recipe.toml").write_bytes(b"\xef\xbb\xbfeffort = 'fast'\r\n")
    assert Recipe.load(tmp_path / "recipe.toml") == Recipe(effort="fast")


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="needs /dev/zero")
def test_a_file_without_an_end() -> None:
    with pytest.raises(kvant.RecipeError, match="'/dev/zero' is a device, a pipe or a socket"):
        Recipe.load("/dev/zero")


@pytest.mark.parametrize("observer", ["minmax", "moving_average"])
@pytest.mark.parametrize("method", ["percentile", "kl", "aciq", "cosine"])
def test_ranges_that_an_observer_cannot_give_are_refused(observer: Any, method: Any) -> None:
    scheme = ActivationScheme(range=method)
    for chosen in ({"activations": scheme}, {"rules": (Rule("head", activations=scheme),)}):
        with pytest.raises(kvant.RecipeError, match=rf"range={method!r}.*use observer='histogram'"):
            Recipe(observer=observer, **chosen)
        Recipe(**chosen)
    Recipe(observer=observer, activations=ActivationScheme(range="minmax"))
