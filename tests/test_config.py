import copy
import json
from dataclasses import FrozenInstanceError

import pytest
import yaml
from conftest import ROOT
from srvp.config import ConfigError, from_entry, load_experiment, to_entry

PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())


@pytest.mark.parametrize("name", PARAMS["experiments"])
def test_every_experiment_of_params_yaml_is_valid_and_survives_json(name):
    experiment = load_experiment(ROOT / "params.yaml", name)
    entry = to_entry(experiment)
    assert from_entry(name, json.loads(json.dumps(entry))) == experiment
    for section, values in PARAMS["experiments"][name].items():
        assert json.loads(json.dumps(entry[section])).items() >= values.items()


def test_experiments_are_frozen(tiny):
    with pytest.raises(FrozenInstanceError):
        tiny.training.lr = 1.0


def test_run_names_experiments_that_exist():
    assert set(PARAMS["run"]) <= set(PARAMS["experiments"])


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("model", "nff", 4, r"experiments\.tiny\.model\.nff is not a known key; did you mean 'nf'"),
        ("model", "nf", None, r"experiments\.tiny\.model\.nf is missing"),
        ("model", "nf", 4.5, r"model\.nf is 4\.5; expected a whole number"),
        ("model", "nf", 0, r"model\.nf is 0; expected at least 1"),
        ("model", "nf", True, r"model\.nf is True; expected a whole number"),
        ("model", "architecture", "vggg", r"architecture is 'vggg'; expected one of \['dcgan'"),
        ("model", "name", "svrp", r"model\.name is 'svrp'; expected one of \['srvp'"),
        ("model", "inference_frames", 6, r"conditioning_frames is 5, but the model needs 6"),
        ("training", "lr", "1e-3", r"training\.lr is '1e-3'; expected a number \(write 1\.0e-3"),
        ("training", "frames", 5, r"training\.frames is 5: it must exceed"),
        ("training", "constant_steps", -1, r"constant_steps is -1; expected at least 0"),
        ("data", "dataset", "mnist", r"data\.dataset is 'mnist'; expected one of"),
        ("data", "test_frames", 5, r"leaves none of the 5 test frames to predict"),
        (
            "data",
            "crop",
            "left",
            r"crop is 'left'; expected one of \['center'\], or a list .* null",
        ),
        ("data", "crop", [0, 0, 9, 9], r"data\.crop is for your own videos, .*dataset is smmnist"),
        ("data", "frame_rate", 10, r"data\.frame_rate is for your own videos"),
        ("data", "frame_rate", "fast", r"frame_rate is 'fast'; expected a number, or null"),
        ("evaluation", "euler_steps", 2, r"euler_steps is 2; expected a list"),
        ("evaluation", "euler_steps", [1, 0], r"euler_steps\[1\] is 0; expected at least 1"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(tmp_path, section, key, value, message):
    entry = json.loads(json.dumps(PARAMS["experiments"]["tiny"]))
    entry[section][key] = value
    if value is None:
        del entry[section][key]
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump({"experiments": {"tiny": entry}}))
    with pytest.raises(ConfigError, match=message) as error:
        load_experiment(path, "tiny")
    assert str(error.value).startswith("params.yaml: experiments.tiny.")
    assert "\n" not in str(error.value)


def test_a_crop_has_four_edges():
    entry = json.loads(json.dumps(PARAMS["experiments"]["tiny"]))
    entry["data"] |= {"dataset": "videos", "crop": [0, 0, 9]}
    with pytest.raises(ConfigError, match=r"data\.crop is \[0, 0, 9\]; expected \[left, upper"):
        from_entry("tiny", entry)


@pytest.mark.parametrize("name", ["svg_tiny", "svg_kth", "smmnist_mlp", "smmnist_gru"])
@pytest.mark.parametrize("steps", [[2], [1, 2]])
def test_steps_between_frames_need_a_model_that_takes_them(name, steps):
    entry = copy.deepcopy(PARAMS["experiments"][name])
    entry["evaluation"]["euler_steps"] = steps
    with pytest.raises(ConfigError, match="moves from frame to frame: write") as error:
        from_entry("other", entry)
    key = "experiments.other.evaluation.euler_steps"
    assert str(error.value).startswith(f"{key} is {steps}, but the model")


def test_an_unknown_experiment_is_one_line_with_a_suggestion():
    with pytest.raises(ConfigError, match="no 'quik'; did you mean 'quick'"):
        load_experiment(ROOT / "params.yaml", "quik")


def test_a_file_that_is_not_yaml_is_one_line(tmp_path):
    (tmp_path / "params.yaml").write_text("experiments: {tiny: [")
    with pytest.raises(ConfigError, match=r"params\.yaml is not valid YAML") as error:
        load_experiment(tmp_path / "params.yaml", "tiny")
    assert "\n" not in str(error.value)
