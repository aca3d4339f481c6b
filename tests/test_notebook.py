"""Running a notebook, and the curves that grow in it."""

import re
import shutil
import subprocess
import sys
from itertools import pairwise

import nbformat
import pytest
from conftest import ROOT

from srvp import notebook
from srvp.notebook import COST, REFRESH, LiveCurves, NotebookError, require, run_notebook, run_stage
from srvp.schema import ConfigError

PARAMETERS = "greeting = 'none'\nfails = False"
PRINTING = """
import pathlib, sys
for text in ("steps", ":", " ", greeting, "\\n"):
    print(text, end="", flush=True)
print("a warning", file=sys.stderr)
print("in", pathlib.Path.cwd().name)
"""
FAILING = "assert not fails, 'asked to'"
# The figures are counted while the cell runs: pyplot would hold them until its end.
DRAWING = """
import gc
from matplotlib.figure import Figure
from srvp.notebook import LiveCurves
with LiveCurves(pathlib.Path("live"), {"kl": "KL of z (nats)"}) as curves:
    for step in range(1, 9):
        curves({"step": step, "total": 1 / step, "kl": step})
        curves.draw()
    gc.collect()
    print("figures in memory:", sum(type(thing) is Figure for thing in gc.get_objects()))
"""


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A folder that looks like the repository, with a notebook of the cells above."""
    cells = [nbformat.v4.new_code_cell(s) for s in (PARAMETERS, PRINTING, FAILING, DRAWING)]
    cells[0].metadata.tags = ["parameters"]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    written = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    (tmp_path / "params.yaml").write_text("experiments:\n")
    (tmp_path / "notebooks").mkdir()
    nbformat.write(written, tmp_path / "notebooks" / "01_probe.ipynb")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def outputs(path):
    """Return the outputs of the cells `PRINTING`, `FAILING` and `DRAWING`."""
    cells = nbformat.read(path, as_version=4).cells
    return [cell.outputs for cell in cells if cell.cell_type == "code"][-3:]


def test_a_notebook_runs_with_its_parameters_and_holds_no_figure(repository, capsys):
    run_notebook("01_probe", {"greeting": "20"}, repository / "runs" / "a" / "01_probe.ipynb")
    printing, _, drawing = outputs(repository / "runs" / "a" / "01_probe.ipynb")
    assert [(o.name, o.text) for o in printing] == [
        ("stdout", "steps: 20\nin notebooks\n"),  # in one piece
        ("stderr", "a warning\n"),
    ]
    assert "a warning" in capsys.readouterr().err
    figure, printed = drawing  # the last drawing took the place of those before
    assert "image/png" in figure.data
    assert printed.text == "figures in memory: 0\n"


def test_a_failing_notebook_leaves_its_executed_copy(repository):
    out = repository / "01_probe.ipynb"
    with pytest.raises(NotebookError) as error:
        run_notebook("01_probe", {"fails": True}, out)
    assert str(error.value) == f"01_probe failed in cell [4]: AssertionError: asked to (see {out})"
    printing, failing, drawing = outputs(out)
    assert printing and not drawing
    assert failing[0].evalue == "asked to"


def test_an_unknown_notebook_or_parameter_is_named(repository):
    with pytest.raises(NotebookError, match="no notebook 'probe'; did you mean '01_probe'?"):
        run_notebook("probe", {}, repository / "out.ipynb")
    with pytest.raises(NotebookError, match="no parameter 'greetings'; did you mean 'greeting'?"):
        run_notebook("01_probe", {"greetings": "20"}, repository / "out.ipynb")
    assert not (repository / "out.ipynb").exists()


def test_a_stage_of_the_pipeline_has_the_parameters_that_its_notebook_takes(monkeypatch):
    ran = []
    monkeypatch.setattr(notebook, "run_notebook", lambda *arguments: ran.append(arguments))
    for name in ("01_prepare", "03_evaluate"):
        run_stage(name, "quick")
    run_stage("05_report")
    data = {"experiment": "quick", "prepared": "prepared/quick"}
    results = {"run": "runs/quick", "model": "runs/quick/model.safetensors"}
    comparison = {"experiments": None, "runs": "runs", "reports": "reports"}
    assert ran == [
        ("01_prepare", data, ROOT / "runs" / "quick" / "01_prepare.ipynb"),
        ("03_evaluate", data | results, ROOT / "runs" / "quick" / "03_evaluate.ipynb"),
        ("05_report", comparison, ROOT / "reports" / "05_report.ipynb"),
    ]


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (("03_evaluate",), "03_evaluate needs an experiment"),
        (("05_report", "quick"), "05_report takes no experiment"),
        (("03_evaluat", "quick"), "did you mean '03_evaluate'?"),
        (("03_evaluate", "quik"), "did you mean 'quick'?"),
    ],
)
def test_an_impossible_stage_is_one_line(stage, message):
    with pytest.raises((NotebookError, ConfigError), match=re.escape(message)):
        run_stage(*stage)


def test_an_earlier_notebook_runs_only_if_its_result_is_missing(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(notebook, "run_notebook", lambda *arguments: ran.append(arguments))
    require(tmp_path, "01_prepare", experiment="tiny")
    assert ran == []
    require(tmp_path / "model", "02_train", experiment="tiny")
    assert ran == [("02_train", {"experiment": "tiny"}, tmp_path / "02_train.ipynb")]


def test_drawing_takes_little_of_the_time(tmp_path, monkeypatch):
    """A step per second and a drawing of five: the clock stands still otherwise."""
    clock, drawn = [0.0], []

    class Display:
        def update(self, figure):
            drawn.append(clock[0])
            clock[0] += 5

    monkeypatch.setattr("IPython.display.display", lambda display_id: Display())
    monkeypatch.setattr(notebook.time, "monotonic", lambda: clock[0])
    with LiveCurves(tmp_path, {}) as curves:
        curves.live.log_metric = lambda name, value: None
        for step in range(1, 2001):
            clock[0] += 1
            curves({"step": step, "total": 1.0})
    *live, last = drawn
    assert live[0] == REFRESH + 1 and last == clock[0] - 5
    assert len(live) > 5
    assert all(later - earlier > 5 / COST for earlier, later in pairwise(live))


def test_only_what_is_used_is_imported():
    """A notebook that asks for an earlier step loads neither papermill nor a drawing library."""
    code = (
        "import sys, srvp.notebook; print({'papermill', 'dvclive', 'matplotlib'} & {*sys.modules})"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "set()\n", result.stderr


def test_an_experiment_that_a_shallow_clone_would_lose_is_refused(tmp_path, monkeypatch):
    """DVC runs queued and `--temp` experiments in a folder below `.dvc/tmp/exps` of the clone."""
    root = tmp_path / ".dvc" / "tmp" / "exps" / "standalone"
    root.mkdir(parents=True)
    shutil.copy(ROOT / "params.yaml", root)
    (root / "notebooks").symlink_to(ROOT / "notebooks")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "shallow").touch()
    monkeypatch.setenv("SRVP_ROOT", str(root))
    with pytest.raises(NotebookError, match="shallow clone, .* run `git fetch --unshallow`"):
        run_stage("01_prepare", "tiny")
