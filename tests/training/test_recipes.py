from dataclasses import asdict, replace

import pytest

from fracture_lib.errors import InvalidArgument
from fracture_lib.hub import BUNDLE
from fracture_lib.models.config import read_config
from fracture_lib.registry import MODELS
from fracture_lib.training.recipes import RECIPES


def test_recipes_cover_every_model():
    assert RECIPES.keys() == MODELS.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_equals_that_of_the_bundled_model(name):
    config = read_config(BUNDLE / name)
    assert config.recipe == asdict(RECIPES[name])
    assert config.architecture == RECIPES[name].architecture


def test_recipe_of_both_cnns_is_the_same():
    assert RECIPES["pytorch-cnn"] == RECIPES["tensorflow-cnn"]


@pytest.mark.parametrize("field", ["epochs", "batch_size"])
@pytest.mark.parametrize("value", [0, -3])
def test_recipe_with_number_below_one_raises_invalid_argument(field, value):
    with pytest.raises(InvalidArgument, match=f"^{field} is {value}; use 1 or more"):
        replace(RECIPES["pytorch-cnn"], **{field: value})
