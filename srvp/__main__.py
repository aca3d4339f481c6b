"""The commands: `python -m srvp COMMAND --help`. They do the same as the notebooks.

An error is one line and exit status 2; an interrupted command can be called again to resume.
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from srvp import commands

DESCRIPTION = "Stochastic latent residual video prediction."


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; each sets `run`, the function that does it."""
    parser = argparse.ArgumentParser(prog="python -m srvp", description=DESCRIPTION)
    parsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(run: Callable) -> argparse.ArgumentParser:
        text = run.__doc__.splitlines()[0]
        sub = parsers.add_parser(run.__name__, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    def experiment_of(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("experiment", help="an entry of params.yaml")

    prepare = command(commands.prepare)
    experiment_of(prepare)
    prepare.add_argument("--out", type=Path, help="prepared set; default prepared/EXPERIMENT")

    train = command(commands.train)
    experiment_of(train)
    train.add_argument("--prepared", type=Path, help="default prepared/EXPERIMENT")
    train.add_argument("--out", type=Path, help="default runs/EXPERIMENT")
    train.add_argument("--minutes", type=float, help="stop after so many; the next call resumes")

    evaluate = command(commands.evaluate)
    experiment_of(evaluate)
    model = "pretrained model or model file; default runs/EXPERIMENT/model.safetensors"
    evaluate.add_argument("--model", help=model)
    evaluate.add_argument("--clips", type=_count, help="only the first test clips")
    evaluate.add_argument("--metrics", nargs="+", help="default: the experiment's")
    precisions = ["float32", "bfloat16"]
    evaluate.add_argument("--fvd-precision", choices=precisions, help="default: the experiment's")
    evaluate.add_argument("--prepared", type=Path, help="default prepared/EXPERIMENT")
    evaluate.add_argument("--out", type=Path, help="default runs/EXPERIMENT")

    score = command(commands.score)
    score.add_argument("predictions", type=Path, help=".npz, .npy or a folder of videos")
    score.add_argument("--experiment", required=True, help="whose protocol to follow")
    score.add_argument("--prepared", type=Path, help="default prepared/EXPERIMENT")
    score.add_argument("--out", type=Path, required=True, help="folder of the results")

    publish = command(commands.publish)
    experiment_of(publish)
    publish.add_argument("--run", dest="folder", type=Path, help="default runs/EXPERIMENT")

    videos = command(commands.videos)
    videos.add_argument("folder", type=Path)

    predict = command(commands.predict)
    predict.add_argument("video", type=Path, help="a video, a GIF or a folder of pictures")
    predict.add_argument("--model", required=True, help="pretrained model or model file")
    predict.add_argument("--given", type=_count, help="frames to give; default: the model's")
    predict.add_argument("--frames", type=_count, default=20, help="frames to predict (20)")
    predict.add_argument("--samples", type=_count, default=5, help="futures (5)")
    predict.add_argument("--seed", type=int, default=1, help="of the futures (1)")
    predict.add_argument("--crop", choices=["center"], help="crop to a square before resizing")
    predict.add_argument("--rate", type=float, help="frames per second to keep; default: all")
    predict.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    predict.add_argument("--out", type=Path, default=Path("futures.mp4"), help="(futures.mp4)")

    notebook = command(commands.notebook)
    notebook.add_argument("name", help="such as 03_evaluate")
    notebook.add_argument("experiment", nargs="?", help="an entry of params.yaml")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


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
    except (ValueError, OSError, ArithmeticError, RuntimeError, ImportError) as error:
        if os.environ.get("SRVP_TRACEBACK"):
            raise
        lines = [line for line in str(error).splitlines() if line.strip()]
        print(f"error: {lines[-1] if lines else type(error).__name__}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
