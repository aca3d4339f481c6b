"""The tables of results: ours, those of papers, and our models side by side."""

import json

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from safetensors.numpy import save_file

from srvp.data.sets import SETS
from srvp.report import figures
from srvp.report.comparison import (
    best_futures,
    frame_counts,
    joint_curves,
    joint_forecasts,
    same_clips,
    system_labels,
)
from srvp.report.figures.style import OTHERS, OURS
from srvp.report.numbers import number
from srvp.report.studies import study_markdown, study_table
from srvp.report.table import (
    experiments_to_report,
    markdown,
    paper_rows,
    results_table,
    write_table,
)

PAPER = ROOT / "reports" / "paper_results.csv"
FIRST = {"psnr": 14.0, "psnr_ci95": 2.7719, "ssim": 0.5, "ssim_ci95": 0.0}
SECOND = FIRST | {"psnr": 15.0, "fvd": 305.0, "fvd_ci95": 63.53, "fvd_videos": 2, "fvd_frames": 25}
BLACK = {"psnr": 10.0, "psnr_ci95": 0.5, "ssim": 0.6, "ssim_ci95": 0.0}


def write_results(folder, samples, dataset="smmnist", seed=1, **summaries):
    """Write what an evaluation leaves behind."""
    protocol = {
        "protocol": f"the best of {samples} samples",
        "source": {"file": "model.safetensors", "sha256": samples * "0123456789"},
        "srvp": "0.1.0",
        "data": {"dataset": dataset, "test_videos": 2, "test_frames": 25, "seed": seed},
        "evaluation": {"conditioning_frames": 5, "samples": samples},
    }
    summaries = {name.replace("_", " "): values for name, values in summaries.items()}
    rows = [(p, m, values[m]) for p, values in summaries.items() for m in ("psnr", "ssim")]
    curves = pd.DataFrame(rows, columns=["predictor", "metric", "mean"])
    curves = curves.merge(pd.DataFrame({"frame": [6, 7], "ci95": 0.5}), how="cross")
    folder.mkdir(parents=True)
    (folder / "protocol.json").write_text(json.dumps(protocol))
    (folder / "metrics.json").write_text(json.dumps(summaries))
    curves.to_csv(folder / "curves.csv", index=False)


@pytest.fixture
def runs(tmp_path):
    """Results of two experiments on the same clips, the second with FVD and more samples."""
    write_results(tmp_path / "first", samples=2, first=FIRST, black_frame=BLACK)
    write_results(tmp_path / "second", samples=4, second=SECOND, black_frame=BLACK)
    return tmp_path


def test_our_rows_tell_their_numbers_protocol_and_run(runs):
    table = results_table([runs / "first", runs / "second"], PAPER)
    ours = table[table["folder"] != ""].set_index("model")
    first = "first (best of 2)"
    assert list(ours.index) == [first, "second", "black frame"]  # the same black frame, once
    assert ours.loc[first, "psnr"] == 14.0 and np.isnan(ours.loc[first, "fvd"])
    assert ours.loc["second", "fvd"] == 305.0
    assert ours.loc[first, "setting"] == "5->25, best of 2, 2 videos"
    assert ours.loc["black frame", "setting"] == "5->25, 1 sample, 2 videos"
    assert ours.loc["second", "folder"] == str(runs / "second")
    assert ours.loc["second", "videos"] == 2
    assert ours.loc["second", "source"] == "srvp 0.1.0, model.safetensors 01234567"
    assert ours.loc["second", "note"] == "the best of 4 samples"


def test_models_of_another_number_of_samples_than_most_are_marked(runs):
    """Within a data set; where no number is the most common, the largest counts."""
    write_results(runs / "third", samples=2, third=FIRST)
    write_results(runs / "own", samples=1, dataset="videos", own=FIRST)

    def names(*folders):
        ours = results_table([runs / folder for folder in folders], PAPER)
        return list(ours.loc[ours["folder"] != "", "model"])

    assert names("first", "second")[:2] == ["first (best of 2)", "second"]
    marked = ["first", "second (best of 4)", "third", "black frame"]
    assert names("first", "second", "third") == marked
    assert list(joint_curves(runs, ["first", "second", "third"])["predictor"].unique()) == marked
    assert names("first", "own") == ["first", "black frame", "own"]
    write_results(runs / "fourth", samples=1, dataset="videos", fourth=FIRST)
    write_results(runs / "fifth", samples=3, dataset="videos", fifth=FIRST)
    assert names("own", "fourth", "fifth") == ["own", "fourth", "fifth (best of 3)"]
    assert names("own", "fifth") == ["own (1 sample)", "fifth"]
    both = {"perfect_model": FIRST, "black_frame": BLACK}
    write_results(runs / "many", samples=9, dataset="kth", many=FIRST, **both)
    write_results(runs / "few", samples=3, dataset="kth", few=FIRST, **both)
    marked = ["many", "few (best of 3)", "perfect model", "perfect model (best of 3)"]
    assert [name for name in names("many", "few") if name != "black frame"] == marked


def test_rows_of_papers_are_those_of_the_same_data_set_and_frames(runs):
    """Two of the talk's numbers, and one that another paper prints with its interval."""
    table = results_table([runs / "first"], PAPER)
    papers = table[table["folder"] == ""].set_index("model")
    assert set(table["dataset"]) == {"SM-MNIST"}
    assert papers.loc["SRVP", ["psnr", "psnr_ci95", "ssim"]].tolist() == [16.93, 0.07, 0.7799]
    assert papers.loc["SVG", "source"].startswith("SLAMP paper")
    assert papers.loc["SRVP-GRU", "source"].startswith("SRVP presentation slides")
    assert papers.index.is_unique
    assert not any("->30" in setting for setting in papers["setting"])
    assert papers[["lpips", "fvd"]].isna().all(axis=None)


def test_data_sets_stay_together_each_with_its_papers(runs):
    """In the order in which our results name them; a data set that no paper knows has only ours."""
    write_results(runs / "own", samples=2, dataset="videos", own=FIRST)
    table = results_table([runs / "own", runs / "first"], PAPER)
    assert list(table["dataset"].unique()) == ["own videos", "SM-MNIST"]
    ours = table[table["folder"] != ""]
    assert ours.index.tolist() == [0, 1, 2]
    assert table.loc[0, "model"] == "own"


def test_experiments_on_the_same_clips_are_compared(runs):
    """The largest group of a data set counts: `third` has other clips."""
    write_results(runs / "third", samples=2, seed=2, third=FIRST)
    assert same_clips(runs, ["third", "first", "second"]) == {"smmnist": ["first", "second"]}
    assert same_clips(runs, ["first", "third"]) == {}
    assert frame_counts(runs, "first") == (5, 25)
    curves = joint_curves(runs, ["first", "second"])
    assert list(curves["predictor"].unique()) == ["first (best of 2)", "second", "black frame"]
    assert not curves.duplicated(["predictor", "metric", "frame"]).any()
    assert len(curves) == 3 * 2 * 2


def test_best_futures_follow_the_truth(runs):
    truth = np.arange(10, dtype=np.uint8).reshape(2, 5, 1, 1, 1).repeat(64, -1).repeat(64, -2)
    for level, name in enumerate(["first", "second"], start=1):
        best = np.full((2, 3, 1, 64, 64), 100 * level, np.uint8)
        save_file({"truth": truth, "psnr.best": best}, runs / name / "examples.safetensors")
    entries = {"first": {"model": {"name": "structvrnn"}}, "second": {"model": {"name": "sv2p"}}}
    (runs / "params.yaml").write_text(json.dumps({"experiments": entries}))  # JSON is YAML
    labels = system_labels(runs, ["first", "second"], runs / "params.yaml")
    rows = best_futures(runs, labels, 1, "psnr")
    means = {label: video.mean(axis=(1, 2, 3)).tolist() for label, video in rows.items()}
    assert means == {
        "truth": [5, 6, 7, 8, 9],
        "StructVRNN\nfirst\nbest of 2": [5, 6, 100, 100, 100],
        "SV2P\nsecond\nbest of 4": [5, 6, 200, 200, 200],
    }


def test_numbers_have_the_decimals_of_their_metric():
    row = {"psnr": 14.0, "psnr_ci95": 2.7719, "ssim": 0.5, "ssim_ci95": np.nan}
    row |= {"fvd": np.nan, "fvd_ci95": np.nan}
    assert [number(row, m) for m in ("psnr", "ssim", "fvd")] == ["14.00 ± 2.77", "0.5000", ""]


def test_markdown_leaves_missing_numbers_out(runs):
    table = results_table([runs / "first", runs / "second"], PAPER)
    lines = {line.split(" | ")[1]: line.split(" | ") for line in markdown(table).splitlines()}
    assert lines["model"][3:7] == ["PSNR (dB) ↑", "SSIM ↑", "LPIPS ↓", "FVD ↓"]
    assert lines["**first (best of 2)**"][3:7] == ["14.00 ± 2.77", "0.5000 ± 0.0000", "", ""]
    assert lines["**second**"][6] == "305 ± 64"
    assert lines["SRVP"][2:7] == [
        "5 → 25 (20 predicted), best of 100",
        "16.93 ± 0.07",
        "0.7799 ± 0.0020",
        "",
        "",
    ]
    assert lines["SRVP-GRU"][3] == "15.80"
    assert len({len(line) for line in lines.values()}) == 1


def test_every_number_of_a_paper_names_its_source():
    numbers = pd.read_csv(PAPER)
    told = numbers[["source", "table", "dataset", "model", "setting", "metric"]]
    assert told.notna().all(axis=None)
    assert np.isfinite(numbers["value"]).all()


def test_the_paper_of_srvp_is_found_for_its_data_sets(runs):
    """Its frames, as in params.yaml, select its rows."""
    ours = results_table([runs / "first"], PAPER).iloc[:1]
    for dataset, frames, psnr in [
        ("dmmnist", "5->100", 18.25),
        ("kth", "10->40", 29.69),
        ("human36m", "8->53", 25.30),
        ("bair", "2->30", 19.59),
    ]:
        rows = paper_rows(PAPER, ours.assign(dataset=SETS[dataset].title, frames=frames))
        assert rows.set_index("model").loc["SRVP", "psnr"] == psnr


def test_files_are_the_same_bytes_every_time(runs):
    figures.use_style()
    (runs / "params.yaml").write_text("run: [first, second]\nexperiments: {}\n")
    names = experiments_to_report(runs / "params.yaml")
    assert names == ["first", "second"]
    table = results_table([runs / name for name in names], PAPER)
    contents = []
    for folder in (runs / "a", runs / "b"):
        write_table(table, folder)
        figures.save(figures.results_table(table), folder, "table")
        contents.append({p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()})
    assert contents[0] == contents[1]
    assert set(contents[0]) == {"table.md", "table.csv", "table.png", "table.pdf"}
    pd.testing.assert_frame_equal(
        pd.read_csv(runs / "a" / "table.csv")[["model", "psnr", "fvd"]],
        table[["model", "psnr", "fvd"]],
    )


def test_the_figure_has_every_row_with_its_interval(runs):
    table = results_table([runs / "first"], PAPER)
    figure = figures.results_table(table)
    psnr, ssim = figure.axes
    labels = [label.get_text() for label in psnr.get_yticklabels()]
    assert labels[:2] == ["first, 2 videos", "black frame, 2 videos"]
    assert labels[2:] == list(table["model"][2:])
    assert psnr.get_title(loc="left") == "SM-MNIST"
    assert psnr.collections[0].get_segments()[0][:, 0] == pytest.approx([14 - 2.7719, 14 + 2.7719])
    assert [text.get_text() for text in ssim.texts][:2] == ["0.5000", "0.6000"]
    colors = [line.get_color() for line in psnr.lines]
    assert colors == 2 * [OURS] + (len(colors) - 2) * [OTHERS]


def test_an_experiment_without_results_is_named(runs):
    with pytest.raises(FileNotFoundError, match=r"third/protocol.json is missing: run 03_evaluate"):
        results_table([runs / "first", runs / "third"], PAPER)


# What all samples of a clip are worth together.


def forecast_rows(name, ratio):
    """Rows of `forecasts.csv`: a spread that is `ratio` of the error, flat ranks, five samples."""
    frames = [
        (m, f, v) for f in (6, 7) for m, v in (("spread_skill", ratio), ("psnr_of_mean", 15.0))
    ]
    ranks = [("rank_distance", r, 1 / 6) for r in range(6)]
    best = [("best_of_psnr", n, 14.0 + n) for n in (1, 2, 5)]
    table = pd.DataFrame(frames + ranks + best, columns=["measure", "at", "value"])
    return table.assign(predictor=name, ci95=0.1)


def test_runs_without_forecasts_are_left_out_and_references_come_once(runs):
    assert joint_forecasts(runs, ["first", "second"]).empty  # results of an older version
    for name in ("first", "second"):
        rows = [forecast_rows(name, 0.8), forecast_rows("perfect model", 1.0)]
        pd.concat(rows).to_csv(runs / name / "forecasts.csv", index=False)
    joint = joint_forecasts(runs, ["first", "second"])
    assert list(joint["predictor"].unique()) == ["first", "second", "perfect model"]
    assert not joint.duplicated(["predictor", "measure", "at"]).any()


def test_the_figure_of_reliability_shows_each_model_below_or_above_one():
    names = {"sure": 0.5, "honest": 1.0, "perfect model": 1.02}
    forecasts = pd.concat([forecast_rows(name, ratio) for name, ratio in names.items()])
    curves, *bars = figures.reliability(forecasts).axes
    drawn = {line.get_label(): line.get_ydata()[0] for line in curves.lines}
    assert {name: drawn[name] for name in names} == names
    assert curves.patches[0].get_height() == 1  # the region of the overconfident
    assert [ax.get_title() for ax in bars] == list(names)
    assert [bar.get_height() for bar in bars[0].patches] == pytest.approx([1 / 6] * 6)
    assert curves.lines[2].get_color() == OTHERS  # no competitor


def test_the_figure_of_best_of_n_shows_the_mean_of_all_samples_beside():
    (ax,) = figures.best_of(forecast_rows("ours", 0.8)).axes
    curve, mean = ax.lines
    assert curve.get_xydata().tolist() == [[1, 15], [2, 16], [5, 19]]
    assert set(mean.get_ydata()) == {15.0}
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "2", "5"]


def test_baselines_that_differ_by_rounding_have_one_row(tmp_path):
    again = BLACK | {"psnr": BLACK["psnr"] + 1e-7}
    write_results(tmp_path / "first", samples=2, first=FIRST, black_frame=BLACK)
    write_results(tmp_path / "second", samples=2, second=SECOND, black_frame=again)
    table = results_table([tmp_path / "first", tmp_path / "second"], PAPER)
    assert table["model"].tolist()[:3] == ["first", "second", "black frame"]


def test_a_study_tells_means_over_seeds_and_differences_seed_by_seed(tmp_path):
    """Seeds move both settings alike: the difference is known better than either mean."""
    seeds = [1, 2, 3]
    first, second = np.array([14.0, 15.0, 16.0]), np.array([13.0, 14.2, 14.8])
    rows = [
        {"setting": name, "seed": seed, "steps": 4500, "cpu_seconds": 240, "psnr": value}
        for name, values in {"SRVP": first, "SRVP-GRU": second}.items()
        for seed, value in zip(seeds, values, strict=True)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "study.csv", index=False)
    paper = pd.DataFrame({"model": ["SVG", "SRVP"], "psnr": [14.5, 16.93]})
    table = study_table(tmp_path / "study.csv", paper)
    t = 4.303  # Student's, 97.5 %, two degrees of freedom
    assert table["psnr"].tolist() == pytest.approx([15.0, 14.0])
    assert table["psnr_ci95"].tolist() == pytest.approx(
        [t / 3**0.5, t * second.std(ddof=1) / 3**0.5]
    )
    difference = second - first
    assert table["psnr_ahead"][1] == pytest.approx(-1.0)
    assert table["psnr_ahead_ci95"][1] == pytest.approx(t * difference.std(ddof=1) / 3**0.5)
    lines = study_markdown(table).splitlines()
    assert lines[2] == "| SRVP | 4,500 | 4.0 | 3 | 15.00 ± 2.48, *16.93* |"
    assert lines[3] == "| SRVP-GRU | 4,500 | 4.0 | 3 | 14.00 ± 2.28 (-1.00 ± 0.50) |"
    one = pd.DataFrame(rows).query("seed == 1")
    one.to_csv(tmp_path / "one.csv", index=False)
    lines = study_markdown(study_table(tmp_path / "one.csv", paper)).splitlines()
    assert lines[3] == "| SRVP-GRU | 4,500 | 4.0 | 1 | 13.00 (-1.00) |"
    detailed = one.assign(psnr_1=22.31, psnr_10=14.0, kl=150.6)
    detailed.to_csv(tmp_path / "detailed.csv", index=False)
    lines = study_markdown(study_table(tmp_path / "detailed.csv", paper)).splitlines()
    assert lines[0].endswith("| PSNR of frames 1, 10 | KL (nats) |")
    assert lines[3] == "| SRVP-GRU | 4,500 | 4.0 | 1 | 13.00 (-1.00) | 22.3, 14.0 | 151 |"
