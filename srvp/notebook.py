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

from srvp.experiment import load_experiment
from srvp.files import project_root
from srvp.schema import suggest

REFRESH = 10  # seconds between two drawings of live curves, at least
COST = 0.02  # share of the time that drawing may take, at most


class NotebookError(RuntimeError):
    """A notebook could not be run to its end."""


def run_stage(name: str, experiment: str | None = None) -> None:
    """Run a notebook as the pipeline does; the executed copy goes to the results.

    Args:
        name: of the notebook in `notebooks/`, such as `03_evaluate`.
        experiment: an entry of `params.yaml`; none for `05_report`, which compares all.

    Raises:
        ConfigError: there is no such experiment, or a value of it is wrong.
        NotebookError: see `run_notebook`.
    """
    root, known = project_root(), _parameters(name)
    _refuse_shallow_experiment(root)
    if (experiment is not None) != ("experiment" in known):
        needs = "takes no experiment" if experiment else "needs an experiment, such as `quick`"
        raise NotebookError(f"{name} {needs}")
    if experiment is None:
        folder, values = "reports", {"experiments": None, "runs": "runs", "reports": "reports"}
    else:
        load_experiment(root / "params.yaml", experiment)  # errors come before anything is written
        folder = f"runs/{experiment}"
        model = f"{folder}/model.safetensors"
        values = {"experiment": experiment, "prepared": f"prepared/{experiment}"}
        values |= {"model": model, "run": folder}
    parameters = {key: value for key, value in values.items() if key in known}
    run_notebook(name, parameters, root / folder / f"{name}.ipynb")


def _refuse_shallow_experiment(root: Path) -> None:
    """Raise where DVC would lose the results of an experiment in a folder of its own.

    It brings them back as a commit, and says nothing if a shallow clone cannot take it.
    """
    clone, inside, _ = str(root).partition("/.dvc/tmp/exps/")
    if inside and (Path(clone) / ".git" / "shallow").is_file():
        raise NotebookError(
            f"{clone} is a shallow clone, in which queued and `--temp` experiments vanish: run "
            "`git fetch --unshallow` there first"
        )


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

    known = _parameters(name)
    for key in parameters.keys() - known:
        raise NotebookError(f"{name} has no parameter {key!r}{suggest(key, known)}")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(
            project_root() / "notebooks" / f"{name}.ipynb",
            out,
            dict(parameters),
            kernel_name="python3",
            cwd=project_root() / "notebooks",
            progress_bar=False,
            stderr_file=sys.stderr,
            # For nbclient: printed output in one piece per cell, patience on a busy machine, and no
            # warnings of the kernel.
            coalesce_streams=True,
            iopub_timeout=60,
            extra_arguments=["--log-level=ERROR"],
        )
    except papermill.PapermillExecutionError as error:
        message = " ".join(f"{error.ename}: {error.evalue}".split())
        raise NotebookError(
            f"{name} failed in cell [{error.exec_count}]: {message} (see {out})"
        ) from None


def _parameters(name: str) -> set[str]:
    """Return the names in the cell `parameters` of a notebook."""
    import papermill

    folder = project_root() / "notebooks"
    names = [path.stem for path in folder.glob("*.ipynb")]
    if name not in names:
        raise NotebookError(f"there is no notebook {name!r}{suggest(name, names)}")
    return set(papermill.inspect_notebook(folder / f"{name}.ipynb"))


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
