"""The notebooks are run and compared by nbval (see pyproject.toml); this keeps that honest."""

import subprocess
import sys

import nbformat
import pytest
from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_committed_as_run_from_top_to_bottom(path):
    """nbval silently skips the comparison of a cell that has no execution count."""
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert notebook.metadata.kernelspec.name == "python3"
    assert not any(out.output_type == "error" for cell in code for out in cell.outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_what_a_cell_prints_is_committed_in_one_piece(path):
    for cell in nbformat.read(path, as_version=4).cells:
        printed = [out for out in cell.get("outputs", []) if out.get("name") == "stdout"]
        assert len(printed) <= 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_cells_are_short(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert max(len(source.splitlines()) for source in code) <= 15


def test_a_changed_output_makes_the_tests_fail(tmp_path):
    notebook = nbformat.read(ROOT / "notebooks" / "01_prepare.ipynb", as_version=4)
    printed = [o for c in notebook.cells for o in c.get("outputs", []) if o.get("name") == "stdout"]
    assert "test clips: 4" in printed[0].text
    printed[0].text = printed[0].text.replace("test clips: 4", "test clips: 5")
    (tmp_path / "params.yaml").symlink_to(ROOT / "params.yaml")
    (tmp_path / "data").symlink_to(ROOT / "data")
    nbformat.write(notebook, tmp_path / "changed.ipynb")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-c",
        ROOT / "pyproject.toml",
        tmp_path / "changed.ipynb",
    ]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1
    assert "test clips: 5" in result.stdout
