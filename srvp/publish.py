"""Publish a trained model: its weights in 16 bits and its curves, in `pretrained/`.

    python -m srvp.publish smmnist    # runs/smmnist -> pretrained/smmnist

Still to do by hand: the card, and `dvc add` and `dvc push` of the weights.
"""

import argparse
import shutil
import sys
from pathlib import Path

import torch

from srvp.files import atomic_write, repository_root, sha256
from srvp.training.loop import CURVES_FILE, MODEL_FILE, load_model, save_model


def publish(run: Path, folder: Path) -> Path:
    """Copy the model and the curves of a run, and return the model's file.

    Matrices are rounded to 16 bits, half the size; vectors, such as the statistics of batch norm,
    keep 32. Loading makes them float32 again.

    Args:
        run: folder of the run.
        folder: of the published model.

    Raises:
        FileNotFoundError: the run has no model, or no curves.
        ValueError: a weight is too large for 16 bits.
    """
    curves = run / CURVES_FILE
    if not curves.is_file():
        raise FileNotFoundError(f"{curves} is missing: train the model first")
    model, experiment = load_model(run / MODEL_FILE)
    largest = max(weight.abs().max().item() for weight in model.parameters())
    if not largest <= torch.finfo(torch.float16).max:
        raise ValueError(f"{run / MODEL_FILE} has a weight of {largest}: publish it in 32 bits")
    save_model(model, experiment, folder / MODEL_FILE, matrices=torch.float16)
    with atomic_write(folder / CURVES_FILE) as temporary:
        shutil.copy(curves, temporary)
    return folder / MODEL_FILE


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m srvp.publish", description="Publish the model of a run in pretrained/."
    )
    parser.add_argument("experiment", help="whose run it is")
    parser.add_argument("--run", type=Path, help="folder of the run; default runs/EXPERIMENT")
    given, root = parser.parse_args(), repository_root()
    run = given.run or root / "runs" / given.experiment
    try:
        path = publish(run, root / "pretrained" / given.experiment)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"{path.relative_to(root)}: {path.stat().st_size / 1e6:.1f} MB, SHA-256 {sha256(path)}")


if __name__ == "__main__":
    main()
