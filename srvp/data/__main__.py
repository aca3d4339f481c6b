"""Prepare the data of an experiment, as the notebook 01_prepare does.

python -m srvp.data smmnist
"""

import argparse
import sys
from pathlib import Path

from srvp.config import load_experiment
from srvp.data import prepare
from srvp.files import project_root


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m srvp.data", description="Prepare the data of an experiment of params.yaml."
    )
    parser.add_argument("experiment")
    parser.add_argument("--out", type=Path, help="prepared set; default prepared/EXPERIMENT")
    given, root = parser.parse_args(), project_root()
    out = given.out or root / "prepared" / given.experiment
    try:
        prepare(load_experiment(root / "params.yaml", given.experiment).data, root / "data", out)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"{out}: ready")


if __name__ == "__main__":
    main()
