"""What the notebooks need around the package: the steps before them, and live curves."""

import time
from pathlib import Path

import pandas as pd
import papermill
from dvclive import Live
from IPython.display import display

from srvp.files import project_root
from srvp.report.figures import training_curves

REFRESH = 10  # seconds between two drawings of live curves


def require(path: Path, notebook: str, **parameters: str) -> None:
    """Make sure that `path` exists: where it does not, run the notebook that makes it.

    In the pipeline it always exists. This is for a notebook opened on its own.

    Args:
        path: what the notebook makes.
        notebook: file name in `notebooks/`.
        parameters: to run it with; its executed copy goes beside `path`.
    """
    if path.exists():
        return
    print(f"{path.name} is not there yet: running {notebook} first")
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = project_root() / "notebooks"
    papermill.execute_notebook(
        folder / notebook,
        path.parent / notebook,
        parameters,
        kernel_name="python3",
        cwd=folder,
        progress_bar=False,
        extra_arguments=["--log-level=ERROR"],  # its warnings would be outputs of the caller
    )


class LiveCurves:
    """Training curves that grow in the notebook and, through DVCLive, in files that DVC shows.

    Use it as a context manager, and as the `log` of `srvp.training.loop.train`.

    Args:
        folder: for DVCLive's files.
    """

    def __init__(self, folder: Path):
        self.live = Live(str(folder), save_dvc_exp=False, dvcyaml=None, report=None)
        self.rows: list[dict[str, float]] = []
        self.shown = display(display_id=True)
        self.drawn = time.monotonic()

    def __enter__(self) -> "LiveCurves":
        return self

    def __call__(self, row: dict[str, float]) -> None:
        self.rows.append(row)
        self.live.step = row["step"]
        for name, value in row.items():
            if name != "step":
                self.live.log_metric(name, value)
        if time.monotonic() - self.drawn > REFRESH:
            self.draw()

    def draw(self) -> None:
        """Draw the curves so far in place of the last drawing."""
        self.shown.update(training_curves(pd.DataFrame(self.rows)))
        self.drawn = time.monotonic()

    def __exit__(self, *error: object) -> None:
        self.live.end()
        if self.rows:
            self.draw()
