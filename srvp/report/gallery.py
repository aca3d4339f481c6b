"""The gallery: every figure and animation of every experiment on one page, to review in a browser.

The page holds its pictures itself and no script: it can be opened offline and sent to a colleague.
"""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from srvp.files import atomic_write

# By the first part of a file's name; in this order on the page.
CAPTIONS = {
    "predictions": "Truth, best, random and worst future: given frames green, predicted ones red.",
    "comparison": "The models on the same test clips: the best sample of each.",
    "samples": "Best, random and worst of the sampled futures.",
    "metric_curves": "Metrics frame by frame, best samples, with 95 % intervals over clips.",
    "reliability": "Is the spread honest? Below 1, or with a tall right end: overconfident.",
    "best_of": "What the best of N samples pays for luck; dotted, the mean of the samples.",
    "diversity": "Where the futures of one clip differ.",
    "frame_rates": "One future at several frame rates; frames between whole times in blue.",
    "prediction_options": "Metrics of the model under each option of prediction.",
    "keypoints": "Keypoints over the frames, and where futures take them.",
    "content_exchange": "The motion of one clip with the content of another.",
    "blended_dynamics": "From the dynamics of one clip to those of another, with one content.",
    "residual_norms": "How far each frame moves the state, and around bounces.",
    "trajectories": "States of several futures, in the plane in which they vary most.",
    "training_curves": "Terms of the loss, and validation PSNR.",
    "table": "Our results beside those of papers.",
}
TYPES = {".png": "image/png", ".gif": "image/gif"}


class Picture(NamedTuple):
    """A figure as the page shows it."""

    name: str
    caption: str
    source: str  # a data URL


class Section(NamedTuple):
    """The figures of an experiment, or of the comparison of all."""

    title: str
    pictures: list[Picture]


def write_gallery(runs: Path, experiments: Sequence[str], reports: Path) -> None:
    """Write `reports/index.html`: the figures of the report, then those of each experiment.

    Args:
        runs: folder of the runs, each with its `figures/`.
        experiments: which of them.
        reports: folder of the report, with its `figures/`.
    """
    sections = [Section("Comparison", _pictures(reports / "figures"))]
    sections += [Section(name, _pictures(runs / name / "figures")) for name in experiments]
    environment = Environment(
        loader=PackageLoader("srvp.report", "."), autoescape=True, undefined=StrictUndefined
    )
    page = environment.get_template("gallery.html").render(sections=sections)
    with atomic_write(reports / "index.html") as temporary:
        temporary.write_text(page, encoding="utf-8")


def _pictures(folder: Path) -> list[Picture]:
    """Return the figures of a folder, in the order of `CAPTIONS`."""
    order = list(CAPTIONS)
    files = [path for path in folder.iterdir() if path.suffix in TYPES]
    return [_picture(p) for p in sorted(files, key=lambda p: (order.index(_kind(p)), p.name))]


def _kind(path: Path) -> str:
    """Return the key of `CAPTIONS` that a file's name begins with.

    Raises:
        ValueError: there is none.
    """
    for kind in CAPTIONS:
        if path.stem == kind or path.stem.startswith(f"{kind}_"):
            return kind
    raise ValueError(f"{path} has no caption: add one to CAPTIONS in srvp/report/gallery.py")


def _picture(path: Path) -> Picture:
    content = base64.b64encode(path.read_bytes()).decode("ascii")
    source = f"data:{TYPES[path.suffix]};base64,{content}"
    return Picture(path.stem, CAPTIONS[_kind(path)], source)
