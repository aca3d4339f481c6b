"""Studies: their settings are experiments, and their tables have all of them."""

import importlib.util

import pandas as pd
import pytest
from conftest import ROOT

SPEC = importlib.util.spec_from_file_location("study", ROOT / "benchmarks" / "study.py")
study = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(study)


@pytest.mark.parametrize("name", study.STUDIES)
def test_every_setting_is_an_experiment_that_its_changes_have_reached(name):
    for setting in study.STUDIES[name].values():
        experiment = study.experiment_of(setting, seed=7)
        assert experiment.training.seed == 7
        for key, value in setting.items():
            if key != "experiment":
                section, key = key.split(".")
                assert getattr(getattr(experiment, section), key) == value


@pytest.mark.parametrize("name", study.STUDIES)
def test_the_table_has_every_setting_with_the_same_three_seeds(name):
    table = pd.read_csv(ROOT / "reports" / "studies" / f"{name}.csv")
    seeds = table.groupby("setting", sort=False)["seed"].agg(list).to_dict()
    assert seeds == {setting: [1, 2, 3] for setting in study.STUDIES[name]}
    assert table.notna().all(axis=None)
