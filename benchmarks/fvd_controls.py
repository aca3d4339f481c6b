"""What FVD and KVD notice: the true videos against themselves, spoilt in one respect.

    python benchmarks/fvd_controls.py --clips 80             # test clips of `smmnist_gpu`

Half of the clips are the truth; the other half, as they are or spoilt (`CONTROLS` of
srvp/evaluation/references.py), stand for what a model generates. I3D takes a second or two per clip
and row on one CPU core. The table is in docs/forecasts.md.
"""

import argparse
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import torch

from srvp.data import open_test, prepare
from srvp.data.prepared import PreparedVideos
from srvp.devices import pick_device
from srvp.evaluation.references import control_predictors, trivial_predictors
from srvp.experiment import Experiment, load_experiment
from srvp.files import project_root
from srvp.metrics import fvd, kvd
from srvp.metrics.table import fetch_weights
from srvp.models.interface import Clips


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiment", default="smmnist_gpu")
    parser.add_argument("--clips", type=int, default=80)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    experiment = load_experiment(project_root() / "params.yaml", args.experiment)
    data = replace(experiment.data, test_videos=args.clips)
    with tempfile.TemporaryDirectory() as folder:
        prepare(data, project_root() / "data", Path(folder))
        compare(open_test(data, Path(folder)), experiment, args)


def compare(videos: PreparedVideos, experiment: Experiment, args: argparse.Namespace) -> None:
    """Print a row per way to spoil the truth."""
    given, frames = experiment.evaluation.conditioning_frames, experiment.data.test_frames
    device = pick_device(args.device)
    fetch_weights(["fvd"])
    i3d = fvd.load(device, args.precision)

    numbers = list(range(args.clips // 2 * 2))
    first, second = numbers[::2], numbers[1::2]
    real = fvd.fvd_embeddings(i3d, torch.from_numpy(videos.test_clips(first)))
    known = torch.from_numpy(videos.test_clips(second)[:, :given])
    rows = {
        "other true videos": fvd.fvd_embeddings(i3d, torch.from_numpy(videos.test_clips(second)))
    }
    spoilt = control_predictors(videos, given, experiment.evaluation.seed)
    black = {"black frame": trivial_predictors(frames - given)["black frame"]}
    for name, predict in {**spoilt, **black}.items():
        (futures,) = predict(Clips(known.float() / 255), second)
        rows[name] = fvd.embed_futures(i3d, known, futures)[:, 0]
    print(f"{len(first)} clips of {frames} frames on each side")
    warnings.simplefilter("ignore")  # fewer than 400 videos, as the line above says
    for name in rows:
        far = [function(rows[name], real, frames, *more) for function, *more in
               ((fvd.fvd, True), (kvd.kvd,))]  # fmt: skip
        print(f"| {name} | {' | '.join(f'{d.value:.1f} ± {d.ci95:.1f}' for d in far)} |")


if __name__ == "__main__":
    main()
