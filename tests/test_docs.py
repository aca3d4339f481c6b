"""README, documents and cards: links, paths, commands and lists are those of the repository."""

import re
import shlex
import tomllib
from itertools import chain

import pytest
import yaml
from conftest import ROOT

from srvp.__main__ import build_parser

CARDS = sorted(ROOT.glob("pretrained/*/README.md"))
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), ROOT / "benchmarks/README.md", *CARDS]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text() for path in PAGES}
README = TEXTS["README.md"]


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and content of the fenced blocks."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#]+)", TEXTS[page])
    inside = [link for link in links if "://" not in link]
    missing = [link for link in inside if not (ROOT / page).parent.joinpath(link).exists()]
    assert not missing


@pytest.mark.parametrize("page", TEXTS)
def test_paths_in_text_exist(page):
    """Those in backticks that begin with a folder of the repository, but for results of runs."""
    text = re.sub(r"^```.*?^```", "", TEXTS[page], flags=re.DOTALL | re.MULTILINE)
    folders = "srvp|tests|docs|notebooks|benchmarks"
    paths = re.findall(rf"`((?:{folders})/[\w./-]+)`", text)
    made_here = {"srvp/models/still.py"}  # the example of README
    assert not [path for path in paths if not (ROOT / path).exists() and path not in made_here]


def commands() -> list[str]:
    """Every command of the command line in the pages, each once."""
    lines = (line for text in TEXTS.values() for line in re.split(r"\n|`", text))
    found = (re.search(r"python -m srvp ([a-z].*)", line) for line in lines)
    return sorted({m[1] for m in found if m and " | " not in m[1]})


@pytest.mark.parametrize("command", commands())
def test_commands_are_understood(command):
    args = build_parser().parse_args(shlex.split(command, comments=True))
    experiments = yaml.safe_load((ROOT / "params.yaml").read_text())["experiments"]
    name = getattr(args, "experiment", None)
    assert name is None or name.isupper() or name in experiments


def test_the_tree_of_the_readme_is_the_file_system():
    """A line names files, or one folder, then says what they are; two spaces are a level."""
    (tree,) = (text for _, text in blocks(README) if "\nsrvp/" in text)
    listed, folders = set(), []
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        for name in re.split(r"\s{2,}", line.strip())[0].split():
            path = "".join([*folders[:depth], name])
            assert (ROOT / path).exists(), path
            if name.endswith("/"):
                folders = [*folders[:depth], name]
            elif path.startswith("srvp/"):
                listed.add(path)
    files = {p.relative_to(ROOT).as_posix() for p in ROOT.glob("srvp/**/*.*")}
    files = {f for f in files if "__pycache__" not in f and not f.endswith("/__init__.py")}
    assert listed == files


def test_every_dependency_is_explained():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = chain(project["dependencies"], *project["optional-dependencies"].values())
    packages = {re.match(r"[\w-]+", name)[0] for name in named} - {"srvp"}
    table = README.split("## Dependencies")[1].split("\n\n")[1]
    rows = [row.split("|")[1] for row in table.splitlines()[2:]]
    assert set(re.findall(r"[\w-]+", " ".join(rows))) == packages
