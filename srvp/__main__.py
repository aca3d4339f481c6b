"""The commands: `python -m srvp COMMAND --help`. They do the same as the notebooks.

An error is one line and exit status 2. A command that was interrupted resumes when it is called
again.
"""

import argparse
import math
import os
import sys
from pathlib import Path
from typing import Any

from srvp import commands


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**64:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 0 to {2**64 - 1}")
    return int(text)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:  # nan is neither
        raise argparse.ArgumentTypeError(f"{text!r} is no number of at least 0")
    return value


def _rate(text: str) -> float:
    if not _number(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return _number(text)


Argument = tuple[str, dict[str, Any]]  # name and settings of `add_argument`
EXPERIMENT: Argument = ("experiment", {"help": "an entry of params.yaml"})
PREPARED: Argument = ("--prepared", {"type": Path, "help": "default prepared/EXPERIMENT"})
RESULTS: Argument = ("--out", {"type": Path, "help": "default runs/EXPERIMENT"})
PRECISIONS = ["auto", "float32", "bfloat16"]
# A wrong or damaged input, or too small a machine, raises one of these.
ERRORS = (
    ValueError, OSError, ArithmeticError, RuntimeError, ImportError, MemoryError, EOFError
)  # fmt: skip
MODEL = "pretrained model or model file"

ARGUMENTS: dict[str, list[Argument]] = {
    "prepare": [
        EXPERIMENT,
        ("--out", {"type": Path, "help": "prepared set; default prepared/EXPERIMENT"}),
    ],
    "train": [
        EXPERIMENT,
        PREPARED,
        RESULTS,
        ("--minutes", {"type": _number, "help": "stop after so many; the next call resumes"}),
    ],
    "evaluate": [
        EXPERIMENT,
        ("--model", {"help": f"{MODEL}; default runs/EXPERIMENT/model.safetensors"}),
        ("--clips", {"type": _count, "help": "only the first test clips"}),
        ("--metrics", {"nargs": "+", "help": "default: the experiment's"}),
        ("--precision", {"choices": PRECISIONS, "help": "default: the experiment's"}),
        PREPARED,
        RESULTS,
    ],
    "score": [
        ("predictions", {"type": Path, "help": ".npz, .npy or a folder of videos"}),
        ("--experiment", {"required": True, "help": "whose protocol to follow"}),
        PREPARED,
        ("--out", {"type": Path, "required": True, "help": "folder of the results"}),
    ],
    "publish": [
        EXPERIMENT,
        ("--folder", {"type": Path, "help": "of the run; default runs/EXPERIMENT"}),
    ],
    "import-savp": [
        ("folder", {"type": Path, "help": "TensorFlow checkpoint and model_hparams.json"}),
        ("--experiment", {"required": True, "help": "its data and protocol, such as savp_kth"}),
        ("--out", {"type": Path, "help": "model file; default runs/EXPERIMENT/model.safetensors"}),
    ],
    "videos": [
        ("folder", {"type": Path}),
        ("--experiment", {"help": "whose split to show; default: that of the default settings"}),
    ],
    "predict": [
        ("video", {"type": Path, "help": "a video, a GIF or a folder of pictures"}),
        ("--model", {"required": True, "help": MODEL}),
        ("--given", {"type": _count, "help": "frames to give; default: the model's"}),
        ("--frames", {"type": _count, "default": 20, "help": "frames to predict (20)"}),
        ("--samples", {"type": _count, "default": 5, "help": "futures (5)"}),
        ("--seed", {"type": _seed, "default": 1, "help": "of the futures (1)"}),
        ("--crop", {"choices": ["center"], "help": "crop to a square before resizing"}),
        ("--rate", {"type": _rate, "help": "frames per second to keep; default: all"}),
        ("--device", {"default": "auto", "help": "auto, cpu, cuda or mps"}),
        ("--out", {"type": Path, "default": Path("futures.mp4"), "help": "(futures.mp4)"}),
    ],
    "notebook": [
        ("name", {"help": "such as 03_evaluate"}),
        ("experiment", {"nargs": "?", "help": "an entry of params.yaml"}),
    ],
}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; each sets `run`, the function that does it."""
    description = "Stochastic latent residual video prediction."
    parser = argparse.ArgumentParser(prog="python -m srvp", description=description)
    parsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, arguments in ARGUMENTS.items():
        run = getattr(commands, name.replace("-", "_"))
        text = run.__doc__.splitlines()[0]
        command = parsers.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        for argument, settings in arguments:
            command.add_argument(argument, **settings)
    return parser


def main() -> None:
    """Run the command of the command line."""
    args = vars(build_parser().parse_args())
    run = args.pop("run")
    try:
        run(**args)
    except KeyboardInterrupt:
        print("\ninterrupted: the same command resumes where it was", file=sys.stderr)
        os._exit(130)  # at once: threads that read ahead would be waited for
    except BrokenPipeError:
        os._exit(1)
    except ERRORS as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        print(f"error: {lines[-1] if lines else type(error).__name__}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
