"""The house in order: imports point one way, files are short, preparing data stays light."""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

PACKAGE = ROOT / "srvp"
FILES = sorted(PACKAGE.rglob("*.py"))
# From the lowest: a file imports only from its own line or from lines above it.
FLOORS = [
    ("schema", "files", "devices", "processes", "protobuf", "__init__"),
    ("models.interface",),
    ("data", "models", "metrics"),
    ("experiment",),
    ("store",),
    ("training",),
    ("evaluation",),
    ("report",),
    ("notebook", "commands"),
    ("__main__",),
]
MAX_LINES, MAX_FUNCTION = 350, 40


def module_of(path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def floor_of(module: str) -> int:
    names = [(name, i) for i, floor in enumerate(FLOORS) for name in floor]
    fits = [(len(n), i) for n, i in names if module == n or module.startswith(f"{n}.")]
    assert fits, f"srvp.{module} has no floor: name its folder in FLOORS"
    return max(fits)[1]


def imports_of(path) -> set[str]:
    """Modules of the package that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "srvp":
            base = node.module.removeprefix("srvp").lstrip(".")
            for name in node.names:
                inside = f"{base}.{name.name}".lstrip(".")
                path_of = PACKAGE.joinpath(*inside.split("."))
                is_module = path_of.is_dir() or path_of.with_suffix(".py").is_file()
                found.add(inside if is_module else base or "__init__")
    return found


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_point_one_way(path):
    module = module_of(path) or "__init__"
    if module == "__init__":
        return  # `srvp.load_pretrained` is imported when it is asked for
    upwards = {name for name in imports_of(path) if floor_of(name) > floor_of(module)}
    assert not upwards


def test_imports_go_round_in_no_circle():
    edges = {module_of(path): imports_of(path) - {module_of(path)} for path in FILES}
    done: set[str] = set()
    while len(done) < len(edges):
        free = {
            m for m, targets in edges.items() if m not in done and targets <= done | {"__init__"}
        }
        assert free, {m: t - done for m, t in edges.items() if m not in done}
        done |= free


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_files_and_functions_are_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            assert lines <= MAX_FUNCTION, node.name


def test_preparing_data_loads_no_training_no_networks_and_no_fast_convolutions():
    code = (
        "import sys; from srvp.data import prepare, open_test; import srvp.experiment, "
        "srvp.report.figures; print(*[m for m in sys.modules if m.startswith('srvp')])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    modules = loaded.stdout.split()
    assert "srvp.data" in modules, loaded.stderr
    heavy = (
        "srvp.training",
        "srvp.models.parts.fast",
        "srvp.models.parts.networks",
        "srvp.evaluation.protocol",
        "srvp.evaluation.scoring",
    )
    assert not [
        m for m in modules if m.startswith((*heavy, "srvp.metrics.i3d", "srvp.metrics.lpips"))
    ]


def test_the_pipeline_fits_on_one_screen_and_the_readme_is_short():
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) <= 120
    assert len((ROOT / "README.md").read_text().split()) <= 1700
