"""Running the notebooks, and what they need around the package: earlier steps, live curves.

Its libraries are imported where they are needed: a notebook that only asks for an earlier step has
no use for the curves.
"""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from srvp.files import project_root
from srvp.schema import suggest

REFRESH = 10  # seconds between two drawings of live curves, at least
COST = 0.02  # share of the time that drawing may take, at most


class NotebookError(RuntimeError):
    """A notebook could not be run to its end."""


def run_notebook(name: str, parameters: Mapping[str, Any], out: Path) -> None:
    """Run a notebook of the repository from top to bottom.

    Progress bars and warnings appear in the terminal.

    Args:
        name: of the notebook in `notebooks/`, such as `03_evaluate`.
        parameters: values for its cell `parameters`.
        out: where to write the executed copy, also if a cell fails.

    Raises:
        NotebookError: there is no such notebook or parameter, or a cell failed. The message names
            the error and the executed copy.
    """
    import papermill

    folder = project_root() / "notebooks"
    path = folder / f"{name}.ipynb"
    if not path.is_file():
        names = [other.stem for other in folder.glob("*.ipynb")]
        raise NotebookError(f"there is no notebook {name!r}{suggest(name, names)}")
    known = papermill.inspect_notebook(path)
    for key in parameters.keys() - known.keys():
        raise NotebookError(f"{name} has no parameter {key!r}{suggest(key, known)}")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(
            path,
            out,
            dict(parameters),
            kernel_name="python3",
            cwd=folder,
            progress_bar=False,
            stderr_file=sys.stderr,
            # For nbclient: printed output in one piece per cell, and no warnings of the kernel.
            coalesce_streams=True,
            extra_arguments=["--log-level=ERROR"],
        )
    except papermill.PapermillExecutionError as error:
        message = " ".join(f"{error.ename}: {error.evalue}".split())
        raise NotebookError(
            f"{name} failed in cell [{error.exec_count}]: {message} (see {out})"
        ) from None


def require(path: Path, notebook: str, **parameters: Any) -> None:
    """Make sure that `path` exists: where it does not, run the notebook that makes it.

    In the pipeline it always exists. This is for a notebook opened on its own.

    Args:
        path: what the notebook makes.
        notebook: its name in `notebooks/`, such as `02_train`.
        parameters: to run it with; its executed copy goes beside `path`.
    """
    if not path.exists():
        print(f"{path.name} is not there yet: running {notebook} first")
        run_notebook(notebook, parameters, path.parent / f"{notebook}.ipynb")


class LiveCurves:
    """Training curves that grow in the notebook and, through DVCLive, in files that DVC shows.

    Use it as a context manager, and as the `log` of `srvp.training.loop.train`.

    Args:
        folder: for DVCLive's files.
        terms: how the model calls the terms of its loss (`ModelConfig.terms`).
    """

    def __init__(self, folder: Path, terms: Mapping[str, str]):
        from dvclive import Live
        from IPython.display import display

        from srvp.report.figures import use_style

        use_style()  # without it, a notebook that has not asked for it shows no figure
        self.live = Live(str(folder), save_dvc_exp=False, dvcyaml=None, report=None)
        self.terms = terms
        self.rows: list[dict[str, float]] = []
        self.shown = display(display_id=True)
        self.next_drawing = time.monotonic() + REFRESH

    def __enter__(self) -> "LiveCurves":
        return self

    def __call__(self, row: dict[str, float]) -> None:
        self.rows.append(row)
        self.live.step = row["step"]
        for name, value in row.items():
            if name != "step":
                self.live.log_metric(name, value)
        if time.monotonic() > self.next_drawing:
            self.draw()

    def draw(self) -> None:
        """Draw the curves so far in place of the last drawing."""
        from srvp.report.figures import training_curves

        start = time.monotonic()
        self.shown.update(training_curves(pd.DataFrame(self.rows), self.terms))
        end = time.monotonic()
        self.next_drawing = end + max(REFRESH, (end - start) / COST)

    def __exit__(self, *error: object) -> None:
        self.live.end()
        if self.rows:
            self.draw()
