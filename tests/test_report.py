from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from safetensors.numpy import save_file
from srvp.metrics.perceptual import FVD

from srvp.evaluation.results import Scores, digest, write_scores
from srvp.report import figures
from srvp.report.table import (
    DATASETS,
    best_futures,
    experiments_to_report,
    joint_curves,
    markdown,
    published_rows,
    report,
    same_clips,
    write_report,
)

PUBLISHED = ROOT / "reports" / "paper_results.csv"


@pytest.fixture
def runs(tiny, tmp_path):
    """Results of two experiments on the same clips, the second with FVD and more samples."""
    values = {"psnr": np.array([[10.0, 12.0], [11.0, 16.0]]), "ssim": np.full((2, 2), 0.5)}
    curves = {metric: v[:, :1].repeat(20, 1) for metric, v in values.items()}
    black = {metric: v[:, :1] for metric, v in values.items()}
    for name, fvd in (("first", ()), ("second", (FVD(300.0, 2, 25), FVD(310.0, 2, 25)))):
        experiment = replace(
            tiny,
            name=name,
            data=replace(tiny.data, test_videos=2),
            evaluation=replace(tiny.evaluation, samples=2 + len(fvd)),
        )
        source = tmp_path / name / "model.safetensors"
        source.parent.mkdir()
        source.write_text(name)
        scores = {name: Scores(values, curves, fvd), "black frame": Scores(black, curves)}
        write_scores(scores, experiment, source, source.parent)
    return tmp_path


def test_our_rows_tell_their_numbers_protocol_and_run(runs):
    table = report([runs / "first", runs / "second"], PUBLISHED)
    ours = table[table["folder"] != ""].set_index("model")
    assert list(ours.index) == ["first", "second", "black frame"]  # the same black frame, once
    assert ours.loc["first", "psnr"] == 14.0 and np.isnan(ours.loc["first", "fvd"])
    assert ours.loc["second", "fvd"] == 305.0
    assert ours.loc["first", "setting"] == "5->25, best of 2, 2 videos"
    assert ours.loc["black frame", "setting"] == "5->25, 1 sample, 2 videos"
    assert ours.loc["second", "folder"] == str(runs / "second")
    assert ours.loc["second", "videos"] == 2
    assert digest(runs / "second" / "model.safetensors")[:8] in ours.loc["second", "source"]
    assert "best of 4 samples" in ours.loc["second", "note"]


def test_published_rows_are_those_of_the_same_data_set_and_frames(runs):
    """Two of the talk's numbers, and one that another paper prints with its interval."""
    table = report([runs / "first"], PUBLISHED)
    published = table[table["folder"] == ""].set_index("model")
    assert set(table["dataset"]) == {"SM-MNIST"}
    assert published.loc["SRVP", ["psnr", "psnr_ci95", "ssim"]].tolist() == [16.93, 0.07, 0.7799]
    assert published.loc["SVG", "source"].startswith("SLAMP paper")
    assert published.loc["SRVP-GRU", "source"].startswith("SRVP presentation slides")
    assert published.index.is_unique
    assert not any("->30" in setting for setting in published["setting"])
    assert published[["lpips", "fvd"]].isna().all(axis=None)


def test_experiments_on_the_same_clips_are_compared(runs):
    assert same_clips(runs, ["first", "second"]) == {"smmnist": ["first", "second"]}
    assert same_clips(runs, ["first"]) == {}
    curves = joint_curves(runs, ["first", "second"])
    assert list(curves["predictor"].unique()) == ["first", "second", "black frame"]
    assert not curves.duplicated(["predictor", "metric", "frame"]).any()


def test_best_futures_stand_below_the_truth(runs):
    truth = np.zeros((2, 5, 1, 64, 64), np.uint8)
    for level, name in enumerate(["first", "second"], start=1):
        best = np.full((2, 3, 1, 64, 64), level, np.uint8)
        save_file({"truth": truth, "psnr.best": best}, runs / name / "examples.safetensors")
    rows = best_futures(runs, ["first", "second"], 1, "psnr")
    means = {label: video.mean(axis=(1, 2, 3)).tolist() for label, video in rows.items()}
    assert means == {"truth": [0] * 5, "first": [0, 0, 1, 1, 1], "second": [0, 0, 2, 2, 2]}


def test_markdown_leaves_missing_numbers_out(runs):
    table = report([runs / "first", runs / "second"], PUBLISHED)
    lines = {line.split(" | ")[1]: line.split(" | ") for line in markdown(table).splitlines()}
    assert lines["**first**"][3:7] == ["14.00 ± 2.77", "0.5000 ± 0.0000", "", ""]
    assert lines["**second**"][6] == "305 ± 64"  # t = 12.706 for two repetitions
    assert lines["SRVP"][2:7] == [
        "5 → 25 (20 predicted), best of 100",
        "16.93 ± 0.07",
        "0.7799 ± 0.0020",
        "",
        "",
    ]
    assert lines["SRVP-GRU"][3] == "15.80"
    assert len({len(line) for line in lines.values()}) == 1


def test_every_published_number_names_its_source():
    numbers = pd.read_csv(PUBLISHED)
    told = numbers[["source", "table", "dataset", "model", "setting", "metric"]]
    assert told.notna().all(axis=None)
    assert np.isfinite(numbers["value"]).all()
    assert set(DATASETS.values()) - {"own videos"} <= set(numbers["dataset"])


def test_every_data_set_finds_its_published_rows(runs):
    """The paper's frames, as in params.yaml, select the paper's rows."""
    ours = report([runs / "first"], PUBLISHED).iloc[:1]
    for dataset, frames, psnr in [
        ("DM-MNIST", "5->100", 18.25),
        ("KTH", "10->40", 29.69),
        ("Human3.6M", "8->53", 25.30),
        ("BAIR", "2->30", 19.59),
    ]:
        rows = published_rows(PUBLISHED, ours.assign(dataset=dataset, frames=frames))
        assert rows.set_index("model").loc["SRVP", "psnr"] == psnr


def test_files_are_the_same_bytes_every_time(runs):
    figures.use_style()
    table = report([runs / name for name in experiments_to_report_of(runs)], PUBLISHED)
    contents = []
    for folder in (runs / "a", runs / "b"):
        write_report(table, folder)
        figures.save(figures.report_table(table), folder, "table")
        contents.append({p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()})
    assert contents[0] == contents[1]
    assert set(contents[0]) == {"table.md", "table.csv", "table.png", "table.pdf"}


def experiments_to_report_of(folder):
    (folder / "params.yaml").write_text("run: [first]\npublished: {second: model}\n")
    return experiments_to_report(folder / "params.yaml")


def test_the_figure_tells_on_how_many_videos_ours_were_scored(runs):
    figure = figures.report_table(report([runs / "first"], PUBLISHED))
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[:2] == ["first, 2 videos", "black frame, 2 videos"] and "SRVP" in labels


def test_an_experiment_without_results_is_named(runs):
    with pytest.raises(FileNotFoundError, match=r"third/protocol.json is missing: run 03_evaluate"):
        report([runs / "first", runs / "third"], PUBLISHED)
