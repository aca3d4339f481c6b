import copy
import json
import shutil
from dataclasses import FrozenInstanceError, replace

import pytest
import yaml
from conftest import ROOT

from srvp.experiment import ConfigError, from_entry, load_experiment, to_entry
from srvp.store import current_entry

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
    assert {*PARAMS["train"], *PARAMS["pretrained"]} == set(PARAMS["run"])


def test_a_stage_of_training_depends_on_the_weights_that_it_starts_from():
    for name, start in PARAMS["train"].items():
        init_from = PARAMS["experiments"][name]["training"].get("init_from")
        assert start == (init_from or "srvp/models"), name


def test_params_yaml_shares_nothing_between_experiments():
    """`dvc exp run -S` writes a value that is shared by an alias or `<<` elsewhere."""
    tokens = yaml.scan((ROOT / "params.yaml").read_text())
    shared = (yaml.AliasToken, yaml.AnchorToken)
    assert not [t for t in tokens if isinstance(t, shared) or getattr(t, "value", "") == "<<"]


def numeric_keys() -> list[str]:
    """Every number in the experiments of params.yaml, as `dvc exp run -S` names it."""

    def walk(value, key):
        if isinstance(value, dict):
            for name, item in value.items():
                yield from walk(item, f"{key}.{name}")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield key

    return list(walk(PARAMS["experiments"], "experiments"))


def test_no_override_of_any_key_is_lost(tmp_path):
    """Through DVC's own function, all keys of an experiment at once."""
    from dvc.utils.hydra import apply_overrides

    path = tmp_path / "params.yaml"
    for name in PARAMS["experiments"]:
        shutil.copy(ROOT / "params.yaml", path)
        keys = [k for k in numeric_keys() if k.startswith(f"experiments.{name}.")]
        apply_overrides(path, [f"{key}={7 + i}" for i, key in enumerate(keys)])
        changed = yaml.safe_load(path.read_text())
        for i, key in enumerate(keys):
            value = changed
            for part in key.split("."):
                value = value[part]
            assert value == 7 + i, key
        others = {n: e for n, e in changed["experiments"].items() if n != name}
        expected = {n: e for n, e in PARAMS["experiments"].items() if n != name}
        assert others == expected


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("model", "nff", 4, r"experiments\.tiny\.model\.nff is not a known key; did you mean 'nf'"),
        ("model", "ny", None, r"experiments\.tiny\.model\.ny is missing"),
        ("model", "nf", 4.5, r"model\.nf is 4\.5; expected a whole number"),
        ("model", "nf", 0, r"model\.nf is 0; expected at least 1"),
        ("model", "nf", True, r"model\.nf is True; expected a whole number"),
        ("model", "architecture", "vggg", r"architecture is 'vggg'; expected one of \['dcgan'"),
        ("model", "name", "srvpp", r"model\.name is 'srvpp'; did you mean 'srvp'"),
        ("model", "inference_frames", 6, r"conditioning_frames is 5, but the model needs 6"),
        ("training", "lr", "1e-3", r"training\.lr is '1e-3'; expected a number \(write 1\.0e-3"),
        ("training", "frames", 5, r"training\.frames is 5: it must exceed"),
        ("training", "constant_steps", -1, r"constant_steps is -1; expected at least 0"),
        ("data", "dataset", "smnist", r"data\.dataset is 'smnist'; did you mean 'smmnist'"),
        ("data", "size", 60, r"data\.size is 60; expected a power of two"),
        ("data", "test_frames", 25.5, r"test_frames is 25\.5; expected a whole number"),
        ("training", "validation_frames", 5, r"validation_frames is 5, which leaves none"),
        ("training", "betas", [0.9], r"training\.betas are \[0\.9\]; expected two numbers below 1"),
        ("training", "lr", float("nan"), r"training\.lr is nan; expected a finite number"),
        ("evaluation", "metrics", ["psnrr"], r"metrics has 'psnrr'; did you mean 'psnr'"),
        ("evaluation", "metrics", [], r"metrics is \[\]; expected a list"),
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
        ("evaluation", "predict", {}, r"predict is \{\}; expected a list"),
        ("evaluation", "predict", [{"steps": 2}], r"predict\[0\]\.steps is not a known key"),
        ("evaluation", "predict", [{"euler_steps": 0}], r"euler_steps is 0; expected at least 1"),
        ("evaluation", "predict", [{"every_step": True}], r"predict\[0\]\.every_step would return"),
        (
            "evaluation",
            "predict",
            [{}, {"euler_steps": 2}, {}],
            r"evaluation\.predict\[2\] would have the name of predict\[0\] in tables, 'tiny'",
        ),
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
def test_steps_between_frames_need_a_model_that_takes_them(name):
    entry = copy.deepcopy(PARAMS["experiments"][name])
    entry["evaluation"]["predict"] = [{}, {"euler_steps": 2}]
    with pytest.raises(ConfigError, match="euler_steps is not a known key") as error:
        from_entry("other", entry)
    assert str(error.value).startswith("experiments.other.evaluation.predict[1].euler_steps")


def test_actions_are_for_models_that_take_them():
    for name in ("sv2p_bair", "bair"):
        entry = copy.deepcopy(PARAMS["experiments"][name])
        entry["data"]["actions"] = 4
        if name == "sv2p_bair":
            assert from_entry(name, entry).shape.actions == 4
    with pytest.raises(ConfigError, match=r"bair\.data\.actions is 4, but the model takes no act"):
        from_entry("bair", entry)


def test_a_model_can_be_scored_by_a_protocol_that_it_could_not_be_trained_by():
    """SV2P learns from sequences of one length, and `quick` trains with another."""
    quick, trained = (load_experiment(ROOT / "params.yaml", n) for n in ("quick", "sv2p_quick"))
    evaluation = replace(quick.evaluation, conditioning_frames=24)
    training = replace(quick.training, validation_frames=24)
    protocol = replace(quick, evaluation=evaluation, training=training)
    mixed = protocol.with_model_of(trained)
    assert (mixed.name, mixed.model, mixed.predicted_frames) == ("sv2p_quick", trained.model, 1)
    with pytest.raises(ConfigError, match=r"training\.frames is 12, .*: make them equal"):
        mixed.check_training()


def test_a_protocol_keeps_the_options_that_a_model_has():
    names = ("quick", "srvp_quick", "sv2p_quick")
    quick, srvp, sv2p = (load_experiment(ROOT / "params.yaml", n) for n in names)
    assert quick.with_model_of(srvp).evaluation == quick.evaluation
    assert quick.with_model_of(sv2p).evaluation == replace(quick.evaluation, predict=({},))
    only = replace(quick, evaluation=replace(quick.evaluation, predict=({"euler_steps": 2},)))
    assert only.with_model_of(sv2p).evaluation.predict == ({},)


def test_a_protocol_gives_a_model_the_frames_that_it_needs():
    tiny = load_experiment(ROOT / "params.yaml", "tiny")
    needy = replace(tiny, model=replace(tiny.model, inference_frames=5))
    evaluation = replace(tiny.evaluation, conditioning_frames=4)
    protocol = replace(tiny, model=replace(tiny.model, inference_frames=4), evaluation=evaluation)
    with pytest.raises(ConfigError, match="conditioning_frames is 4, but the model needs 5"):
        protocol.with_model_of(needy)


def test_a_name_in_tables_ends_with_no_comma():
    """An entry may have no description, if a model describes its defaults so."""
    model = load_experiment(ROOT / "params.yaml", "tiny").model
    assert model.option_names("a", [{}, {}, {"euler_steps": 2}]) == ["a", "a", "a, dt = 1/2"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("svg_lp", {"name": "svg", "prior": "learned"}),
        ("svg_fp", {"name": "svg", "prior": "fixed"}),
    ],
)
def test_entries_of_the_first_version_are_read(old, new):
    """Model files hold the experiment as it was written then."""
    model = {"name": old, "nf": 4}
    entry = {"model": model, "evaluation": {"euler_steps": [1], "samples": 3}}
    assert current_entry(entry)["model"] == {"nf": 4, **new}
    assert current_entry(entry)["evaluation"] == {"samples": 3, "predict": [{}]}
    entry["model"] = {"name": "srvp", "euler_steps": 1}
    entry["evaluation"]["euler_steps"] = [1, 2]
    assert current_entry(entry)["evaluation"]["predict"] == [{}, {"euler_steps": 2}]


def test_an_unknown_experiment_is_one_line_with_a_suggestion():
    with pytest.raises(ConfigError, match="no 'quik'; did you mean 'quick'"):
        load_experiment(ROOT / "params.yaml", "quik")


def test_a_file_that_is_not_yaml_is_one_line(tmp_path):
    (tmp_path / "params.yaml").write_text("experiments: {tiny: [")
    with pytest.raises(ConfigError, match=r"params\.yaml is not valid YAML") as error:
        load_experiment(tmp_path / "params.yaml", "tiny")
    assert "\n" not in str(error.value)
