import json
from dataclasses import asdict, replace

import pytest

from fracture_lib.errors import InvalidArgument
from fracture_lib.hub import BUNDLE
from fracture_lib.models.config import read_config
from fracture_lib.registry import MODELS
from fracture_lib.training.recipes import PRETRAINING, RECIPES


def test_recipes_cover_every_model():
    assert RECIPES.keys() == PRETRAINING.keys() == MODELS.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_equals_that_of_the_bundled_model(name):
    config = read_config(BUNDLE / name)
    assert config.recipe == json.loads(json.dumps(asdict(RECIPES[name])))
    assert config.architecture == RECIPES[name].architecture


def test_recipe_of_both_cnns_differs_in_its_length_only():
    assert replace(RECIPES["pytorch-cnn"], epochs=1) == replace(RECIPES["tensorflow-cnn"], epochs=1)


@pytest.mark.parametrize("name", RECIPES)
def test_pretraining_builds_the_same_layers_before_the_head(name):
    trained, pretrained = RECIPES[name].architecture, PRETRAINING[name].architecture
    assert {**pretrained, "tuned_stages": 0} == {**trained, "tuned_stages": 0}


@pytest.mark.parametrize("field", ["epochs", "batch_size"])
@pytest.mark.parametrize("value", [0, -3])
def test_recipe_with_number_below_one_raises_invalid_argument(field, value):
    with pytest.raises(InvalidArgument, match=f"^{field} is {value}; use 1 or more"):
        replace(RECIPES["pytorch-cnn"], **{field: value})
