"""How fast SRVP, SV2P, SAVP and SVG generate 20 frames after the given ones.

    python benchmarks/generate.py --threads 1
    python benchmarks/generate.py --device cuda --futures 1 100

SRVP unrolls states and then decodes all frames together. The others are autoregressive through the
image: they read the frame that they have just drawn. SRVP and SVG take in the given frames before
the clock starts; SV2P and SAVP draw them anew for each future, which counts. Weights are random,
sizes are the published ones. SVG's decoders have skip connections always, SRVP's DCGAN as published
has none: it is measured with them, for the same decoder, and without. SV2P and SAVP have networks
of their own. The models take turns.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import torch

from srvp.devices import pick_device
from srvp.experiment import load_experiment
from srvp.files import project_root
from srvp.store import build_model

FRAMES = 20
# By decoder of SRVP and SVG: experiment of params.yaml, and how the model differs from it. SVG is
# the last.
DECODERS = {
    "DCGAN, nf 64": {
        "SRVP, as published: no skips": ("smmnist", {}),
        "SRVP": ("smmnist", {"skip_connections": True}),
        "SV2P": ("sv2p_smmnist", {}),
        "SAVP": ("savp_smmnist", {}),
        "SVG-LP": ("svg_smmnist", {}),
    },
    "VGG, nf 64": {
        "SRVP": ("bair", {}),
        "SVG-LP": ("svg_bair", {}),
    },
}


@torch.inference_mode()
def generator(
    name: str, changes: dict, futures: int, device: torch.device
) -> Callable[[], torch.Tensor]:
    """Return a function that generates `(futures, 20, C, 64, 64)` by an experiment's protocol."""
    experiment = load_experiment(project_root() / "params.yaml", name)
    evaluation, shape = experiment.evaluation, experiment.shape
    model = build_model(replace(experiment.model, **changes), shape, seed=0).eval()
    model.to(device, memory_format=torch.channels_last)
    random = torch.Generator(device).manual_seed(0)
    frames = evaluation.conditioning_frames
    x = torch.rand(1, frames, shape.channels, 64, 64, generator=random, device=device)
    given, noise = model.condition(x), model.draw_noise(futures, frames + FRAMES, random)
    return torch.inference_mode()(
        lambda: model.predict(given, FRAMES, noise, **evaluation.predict[0]).x
    )


def seconds(run: Callable[[], torch.Tensor], device: torch.device) -> float:
    """Return how long one call takes, its work on an accelerator included."""
    start = time.perf_counter()
    run()
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - start


def compare(decoder: str, futures: int, rounds: int, device: torch.device) -> None:
    """Print the rows of one decoder and number of futures."""
    models = DECODERS[decoder]
    runs = {label: generator(*model, futures, device) for label, model in models.items()}
    times: dict[str, list[float]] = {label: [] for label in runs}
    for _ in range(rounds + 1):
        for label, run in runs.items():
            times[label].append(seconds(run, device))
    medians = {label: median(t[1:]) for label, t in times.items()}  # the first round warms up
    *_, svg = medians.values()
    for label, taken in medians.items():
        speed = futures * FRAMES / taken
        print(f"| {decoder} | {futures} | {label} | {speed:.3g} | {svg / taken:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu", choices=["auto", "cpu", "cuda", "mps"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="on a CPU")
    parser.add_argument("--futures", type=int, nargs="+", default=[1, 8], help="sampled at once")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = pick_device(given.device)
    where = f"{given.threads} thread(s)" if device.type == "cpu" else f"{device}"
    print(f"{FRAMES} frames, float32, {where}, median of {given.rounds} rounds\n")
    print("| decoder | futures at once | model | frames/s | times SVG's |")
    print("|---|---|---|---|---|")
    for decoder in DECODERS:
        for futures in given.futures:
            compare(decoder, futures, given.rounds, device)


if __name__ == "__main__":
    main()
