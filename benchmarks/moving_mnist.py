"""How long a training batch of Moving MNIST takes to draw, beside the authors' generator.

    python benchmarks/moving_mnist.py AUTHORS    # path of a checkout of the authors' code

Ours draws batches as tensors on the device that trains, the paths of many at a time, theirs
sequence by sequence in NumPy, as in one worker process of their data loader. Ours is also given as
a share of our training step.
"""

import authors
import numpy as np
import torch
from train_step import Step, arguments, load, measure, our_step

from srvp.data.sets import mnist
from srvp.data.sets.moving_mnist import DETERMINISTIC, MovingMNIST, steps_at_once
from srvp.devices import pick_device
from srvp.files import project_root


def main() -> None:
    given = arguments(__doc__).parse_args()
    torch.set_num_threads(given.threads)
    authors.add_to_path(given.authors)
    device = pick_device(given.device)
    if device.type == "cpu":
        given.batch_size = given.batch_size or 8
    experiment = load(given)
    config = experiment.training
    digits, _ = mnist.load(project_root() / "data" / "mnist", "train")
    videos = MovingMNIST(
        torch.tensor(digits, device=device), deterministic=DETERMINISTIC[experiment.data.dataset]
    )
    ours = videos.batches(config.batch_size, config.frames, seed=0)
    theirs = authors.batches(experiment, digits, config.batch_size, workers=0, pin=False)
    sides: dict[str, Step] = {
        "authors": lambda: next(theirs),
        "ours": lambda: next(ours),
        "our step": our_step(experiment, device),  # with its drawing
    }
    for side in sides.values():
        side()
    at_once, _ = steps_at_once(device)
    counts = {"authors": 16, "ours": at_once, "our step": 3 if device.type == "cpu" else at_once}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(given.rounds):
        for name, side in sides.items():
            times[name].append(measure(side, counts[name], device)[0])
    medians = {name: float(np.median(seconds)) for name, seconds in times.items()}
    print(
        f"{config.batch_size} sequences of {config.frames} frames on {device.type}, "
        f"{given.threads} thread(s), median of {given.rounds} rounds"
    )
    for name, seconds in medians.items():
        print(f"{name:8} {1e3 * seconds:8.2f} ms")
    print(f"drawing / step: {100 * medians['ours'] / medians['our step']:.2f} %")


if __name__ == "__main__":
    main()
