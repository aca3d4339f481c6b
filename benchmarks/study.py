"""Train and score settings over seeds: `python benchmarks/study.py ablations --seeds 1 2 3`.

A study is an entry of `studies.yaml`. A run, one setting with one seed, is kept in
`benchmarks/runs`: after an interruption the same command goes on. Two processes with seeds of their
own share the work. Each writes all finished runs to `reports/studies/NAME.csv`, a row per run.
"""

import argparse
import json
import os
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import torch
import yaml
from filelock import FileLock
from variants import VARIANTS

from srvp.data import open_test, open_training, prepare
from srvp.data.prepared import PreparedVideos
from srvp.evaluation.protocol import evaluate, model_digest, partial_folder, sampler
from srvp.evaluation.results import Scores
from srvp.experiment import Experiment, from_entry, load_params
from srvp.files import atomic_write, project_root, write_json
from srvp.models.interface import VideoModel
from srvp.store import CURVES_FILE, MODEL_FILE, load_model
from srvp.training.loop import train
from srvp.training.validation import FRAMES

ROOT = project_root()
STUDIES = yaml.safe_load(Path(__file__).with_name("studies.yaml").read_text())
ROW_FILE = "row.json"
KL_ROWS = 20  # of the training curves, the last: their mean is less noisy than one


def experiment_of(setting: dict, seed: int) -> Experiment:
    """Return an experiment of `params.yaml` with the changes of a setting."""
    entry = load_params(ROOT / "params.yaml")["experiments"][setting["experiment"]]
    for key, value in setting.items():
        if key not in ("experiment", "variant"):
            section, name = key.split(".")
            entry[section][name] = value
    entry["training"]["seed"] = seed
    entry["evaluation"].pop("predict", None)  # models are compared as they were trained
    return from_entry(setting["experiment"], entry)


def finish(name: str, seed: int, setting: dict, folder: Path) -> None:
    """Train and score a run and keep its row, unless that is done with the same settings.

    The row has the CPU seconds that this call trained: those before an interruption are lost.
    """
    experiment = experiment_of(setting, seed)
    change = VARIANTS[setting["variant"]](experiment) if "variant" in setting else nullcontext()
    with change:
        train_and_score(name, experiment, folder)


def train_and_score(name: str, experiment: Experiment, folder: Path) -> None:
    """Do what `finish` does, with an experiment of the setting's changes."""
    file = folder / MODEL_FILE
    trained = file.is_file() and _made_of(load_model(file)[1]) == _made_of(experiment)
    if trained and (folder / ROW_FILE).is_file():
        return
    prepared = ROOT / "prepared" / experiment.name
    prepared.parent.mkdir(exist_ok=True)
    with FileLock(f"{prepared}.lock"):  # another process may want the same set
        prepare(experiment.data, ROOT / "data", prepared)
    start = cpu_seconds()
    if not trained:
        train(experiment, open_training(experiment.data, prepared, torch.device("cpu")), folder)
    row = {"setting": name, "seed": experiment.training.seed, "steps": experiment.training.steps}
    row["cpu_seconds"] = round(cpu_seconds() - start)
    scores = scores_of(
        load_model(file)[0], experiment, open_test(experiment.data, prepared), folder
    )
    row |= {metric: scores.summary(metric).mean for metric in scores.metrics}
    curve = scores.curves["psnr"].mean(axis=0)  # of the best samples, by frame
    row |= {f"psnr_{frame}": float(curve[frame - 1]) for frame in FRAMES}
    history = pd.read_csv(folder / CURVES_FILE)
    kl = history[[term for term in history if term.startswith("kl")]].dropna()
    row["kl"] = float(kl.tail(KL_ROWS).sum(axis=1).mean())
    write_json(folder / ROW_FILE, row)


def cpu_seconds() -> float:
    """Return those of this process and of others that it started and that have ended."""
    return sum(os.times()[:4])


def _made_of(experiment: Experiment) -> tuple:
    return experiment.data, experiment.model, experiment.training


def scores_of(
    model: VideoModel, experiment: Experiment, videos: PreparedVideos, folder: Path
) -> Scores:
    """Score a model alone, without the reference predictors."""
    model.eval().to(memory_format=torch.channels_last)
    config = experiment.evaluation
    partial = partial_folder(folder, model_digest(model), config, videos)
    predict = sampler(model, config, experiment.predicted_frames, {})
    return evaluate({"model": predict}, videos, config, torch.device("cpu"), partial)["model"]


def write_table(name: str, folder: Path) -> None:
    """Write the rows of all finished runs, in the order of the study."""
    order = list(STUDIES[name])
    rows = [json.loads(path.read_text()) for path in folder.glob(f"*/{ROW_FILE}")]
    rows = [row for row in rows if row["setting"] in order]
    rows.sort(key=lambda row: (order.index(row["setting"]), row["seed"]))
    with atomic_write(ROOT / "reports" / "studies" / f"{name}.csv") as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False, float_format="%.6g")


def main(name: str, seeds: list[int]) -> None:
    """Run a study; its table grows with every run."""
    folder = ROOT / "benchmarks" / "runs" / name
    for seed in seeds:
        for setting, changes in STUDIES[name].items():
            print(f"{setting}, seed {seed}", flush=True)
            finish(setting, seed, changes, folder / f"{setting}, seed {seed}")
            write_table(name, folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    args = parser.parse_args()
    main(args.study, args.seeds)
