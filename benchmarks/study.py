"""Train and score settings over seeds: `python benchmarks/study.py ablations --seeds 1 2 3`.

A study is an entry of `studies.yaml`. A run, one setting with one seed, is kept in
`scratch/studies`: after an interruption the same command goes on. Two processes with seeds of their
own share the work. Each writes all finished runs to `reports/studies/NAME.csv`, a row per run.
"""

import argparse
import json
import time
from pathlib import Path

import pandas as pd
import torch
import yaml

from srvp.data import open_test, open_training, prepare
from srvp.data.prepared import PreparedVideos
from srvp.evaluation.protocol import evaluate, model_digest, partial_folder, sampler
from srvp.evaluation.results import Scores
from srvp.experiment import Experiment, from_entry, load_params
from srvp.files import atomic_write, project_root
from srvp.models.interface import VideoModel
from srvp.store import load_model
from srvp.training.loop import train

ROOT = project_root()
STUDIES = yaml.safe_load(Path(__file__).with_name("studies.yaml").read_text())
KL_ROWS = 20  # of the training curves, the last: their mean is less noisy than one


def experiment_of(setting: dict, seed: int) -> Experiment:
    """Return an experiment of `params.yaml` with the changes of a setting."""
    entry = load_params(ROOT / "params.yaml")["experiments"][setting["experiment"]]
    for key, value in setting.items():
        if key != "experiment":
            section, name = key.split(".")
            entry[section][name] = value
    entry["training"]["seed"] = seed
    entry["evaluation"].pop("predict", None)  # models are compared as they were trained
    return from_entry(setting["experiment"], entry)


def finish(experiment: Experiment, folder: Path) -> dict[str, float]:
    """Train and score, unless that is done; return the row of the run."""
    done = folder / "row.json"
    if done.is_file():
        return json.loads(done.read_text())
    prepared = ROOT / "prepared" / experiment.name
    prepare(experiment.data, ROOT / "data", prepared)
    start = time.process_time()
    if not (folder / "model.safetensors").is_file():
        train(experiment, open_training(experiment.data, prepared, torch.device("cpu")), folder)
    seconds = time.process_time() - start
    model, _ = load_model(folder / "model.safetensors")
    own = scores_of(model, experiment, open_test(experiment.data, prepared), folder)
    row = {"steps": experiment.training.steps, "cpu_seconds": round(seconds)}
    row |= {metric: own.summary(metric).mean for metric in own.metrics}
    single = own.curves["psnr"].mean(axis=0)  # of the best samples, by frame
    row |= {f"psnr_{frame}": float(single[frame - 1]) for frame in (1, 5, 10)}
    history = pd.read_csv(folder / "training.csv")
    kl = history[[name for name in history if name.startswith("kl")]].dropna()
    row["kl"] = float(kl.tail(KL_ROWS).sum(axis=1).mean())
    with atomic_write(done) as temporary:
        temporary.write_text(json.dumps(row))
    return row


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
    runs = sorted(folder.glob("*/row.json"), key=lambda path: path.parent.name)
    rows = []
    for path in runs:
        setting, seed = path.parent.name.rsplit(", seed ", 1)
        if setting in order:
            rows.append({"setting": setting, "seed": int(seed), **json.loads(path.read_text())})
    rows.sort(key=lambda row: (order.index(row["setting"]), row["seed"]))
    with atomic_write(ROOT / "reports" / "studies" / f"{name}.csv") as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False, float_format="%.6g")


def main(name: str, seeds: list[int]) -> None:
    """Run a study; print every run when it is done."""
    folder = ROOT / "scratch" / "studies" / name
    for seed in seeds:
        for setting, changes in STUDIES[name].items():
            row = finish(experiment_of(changes, seed), folder / f"{setting}, seed {seed}")
            print(f"{setting}, seed {seed}: {row}", flush=True)
            write_table(name, folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    args = parser.parse_args()
    main(args.study, args.seeds)
