import dataclasses
from pathlib import Path

import pytest

from training.config import dump_recipe, load_recipe, recipe_from_dict, recipe_to_dict
from training.errors import TrainingError

RECIPES = Path(__file__).parents[2] / "training" / "recipes"
DIGITS = RECIPES / "digits-lenet5.toml"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_is_valid_and_named_as_its_file(path):
    assert load_recipe(path).name == path.stem


def test_a_dumped_recipe_reads_back_equal(tmp_path):
    recipe = load_recipe(DIGITS, ["train.epochs=2.5", "optim.clip_grad_norm=1"])
    path = tmp_path / "recipe.json"
    path.write_text(dump_recipe(recipe))
    assert load_recipe(path) == recipe
    assert recipe_from_dict(recipe_to_dict(recipe)) == recipe


def test_a_dumped_recipe_spells_out_every_default():
    plain = recipe_to_dict(load_recipe(DIGITS))
    assert plain["optim"]["is_nesterov"] is True
    assert plain["data"]["train"] is None


def test_overrides_are_read_as_toml_and_else_as_text():
    recipe = load_recipe(
        DIGITS,
        [
            "optim.lr=1e-2",
            "train.precision=fp32",
            'name="other"',
            "input.normalisation.mean=[0.1, 0.2, 0.3]",
            "model.options.channels=3",
        ],
    )
    assert recipe.optim.lr == 0.01
    assert recipe.train.precision == "fp32"
    assert recipe.name == "other"
    assert recipe.input.normalisation.mean == (0.1, 0.2, 0.3)
    assert recipe.model.options == {"channels": 3}


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("runs/a", ["runs/a"]),
        ('["runs/a", "b.safetensors"]', ["runs/a", "b.safetensors"]),
        ("[]", []),
    ],
)
def test_weights_are_of_one_run_of_several_or_of_none(given, meant, tmp_path):
    recipe = load_recipe(DIGITS, [f"model.weights={given}"])
    assert recipe.model.weights == tuple(map(Path, meant))
    (tmp_path / "recipe.json").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "recipe.json") == recipe


def test_a_recipe_that_was_written_without_weights_is_read():
    """Runs and bundles of earlier versions have null there."""
    document = recipe_to_dict(load_recipe(DIGITS))
    document["model"]["weights"] = None
    assert recipe_from_dict(document).model.weights == ()


def test_a_recipe_cannot_be_changed():
    recipe = load_recipe(DIGITS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.seed = 1


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("optim.lrr=0.1", "optim.lrr: unknown key"),
        ("optimizer.lr=0.1", "optimizer: unknown key"),
        ("input.normalisation.sd=1", "input.normalisation.sd: unknown key"),
        ("optim.lr=fast", "optim.lr: "),
        ("optim.lr=-1", "optim.lr: "),
        ("optim.lr=nan", "optim.lr: "),
        ("optim.is_nesterov=1", "optim.is_nesterov: "),
        ("train.batch_size=64.5", "train.batch_size: "),
        ("train.epochs=0", "train.epochs: "),
        ("name=../up", "name: "),
        ("optim.lr.peak=1", "lr is no table"),
        ("optim.lr", "expected key.path=value"),
        ("optim..lr=1", "expected key.path=value"),
        ("seed=2000-01-01", "date is not JSON"),
        ("augment.crop_min_area=0.1", "augment.crop_min_area does nothing"),
        ("augment.randaugment_operations=3", "needs randaugment_magnitude"),
        ("augment.mix_probability=0.5", "needs mixup_alpha or cutmix_alpha"),
        ("optim.rmsprop_decay=0.9", "optim.rmsprop_decay does nothing"),
        ("optim.milestones=[0.5]", "optim.milestones does nothing"),
        ("optim.low_momentum=0.8", "optim.low_momentum does nothing"),
        ("train.size_schedule=[[2, 16], [1, 0]]", "train.size_schedule must rise"),
        ("train.imbalance=focal", "train.imbalance: "),
        ("augment.hue=0.6", "augment.hue: "),
        ("model.weights=3", "model.weights: "),
        ('model.weights=["a", 3]', "model.weights.1: "),
        ("data.classes=names.json", "data.classes does nothing"),
        ("data.source=parquet", "needs data.train"),
    ],
)
def test_a_wrong_override_is_one_clear_line(override, complaint):
    with pytest.raises(TrainingError) as caught:
        load_recipe(DIGITS, [override])
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_augmentation_policies_are_refused():
    two = ["augment.is_trivial_augment_on=true", "augment.augmix_severity=3"]
    with pytest.raises(TrainingError, match="one policy, not is_trivial_augment_on and augmix"):
        load_recipe(DIGITS, two)


def test_settings_that_streaming_would_ignore_are_refused():
    stream = "data.loading=stream"
    with pytest.raises(TrainingError, match="translate_px does nothing"):
        load_recipe(DIGITS, [stream])
    with pytest.raises(TrainingError, match="alternating"):
        load_recipe(
            RECIPES / "cifar10-airbench.toml",
            [stream, "augment.translate_px=0"],
        )


def test_a_missing_table_and_a_missing_file_are_named(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('name = "r"\n')
    with pytest.raises(TrainingError, match="data: missing"):
        load_recipe(path)
    with pytest.raises(TrainingError, match=r"none\.toml: no such recipe"):
        load_recipe(tmp_path / "none.toml")
    path.write_text("name = \n")
    with pytest.raises(TrainingError, match=r"r\.toml: Invalid value"):
        load_recipe(path)
