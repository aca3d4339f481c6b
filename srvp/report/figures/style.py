"""The look of all figures: colours, sizes and fonts; and how a figure is written to files."""

from collections.abc import Sequence
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import Any

import seaborn as sns
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageChops, ImageStat

from srvp.evaluation.references import table_rank
from srvp.files import atomic_write

# Borders of frames. Green, red and blue of the colour-blind safe Okabe-Ito palette.
GIVEN = "#009e73"  # given to the model
PREDICTED = "#d55e00"
BETWEEN = "#0072b2"  # predicted, between whole times
# Results in the table of all models.
OURS, OTHERS = "#d55e00", "0.35"
GREYS = (OTHERS, "0.65")  # of the reference predictors, which are no competitors

# The same palette, and a brown.
CURVES = [BETWEEN, "#e69f00", GIVEN, PREDICTED, "#cc79a7", "#56b4e9", "#7f4f24"]

DASHES = ("-", "--", ":", "-.")  # of curves side by side

WIDTH = 6.75  # inches: two columns of a paper, or half a slide
COLUMN = 3.25  # inches: one column

# Changes to seaborn's theme.
STYLE = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.labelsize": 8,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9,
    "figure.dpi": 110,
    "figure.titlesize": 10,
    "font.size": 8,
    "grid.alpha": 0.3,
    "legend.edgecolor": "none",  # a light ground keeps it readable over curves
    "legend.fontsize": 7,
    "lines.linewidth": 1.2,
    "savefig.bbox": "tight",
    "savefig.dpi": 160,
    "xtick.labelsize": 7,
    "xtick.major.width": 0.8,
    "ytick.labelsize": 7,
    "ytick.major.width": 0.8,
}


def looks(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return colour and dash of each predictor's curve: models in colours, references in greys."""
    dashes, colors = cycle(DASHES), cycle(CURVES)
    greys = cycle([{"color": grey, "ls": dash} for grey in GREYS for dash in DASHES])
    return {
        name: next(greys) if table_rank(name) >= 0 else {"color": next(colors), "ls": next(dashes)}
        for name in names
    }


def add_curve(ax: Axes, at: Any, value: Any, half: Any, **line: Any) -> None:
    """Draw values against `at`, and a band of plus and minus `half` around them."""
    (drawn,) = ax.plot(at, value, **line)
    ax.fill_between(at, value - half, value + half, color=drawn.get_color(), alpha=0.2, lw=0)


def use_style() -> None:
    """Make matplotlib draw in the repository's style, and notebooks show its figures."""
    from IPython import get_ipython

    style.use("default")  # whatever a user's own matplotlibrc says
    # matplotlib brings this font: bytes then do not depend on the fonts of the machine.
    sns.set_theme(style="ticks", palette=CURVES, font="DejaVu Sans", rc=STYLE)
    shell = get_ipython()
    if shell is not None:  # pyplot would do this when it makes its first figure
        shell.display_formatter.formatters["image/png"].for_type(Figure, _shown)


def _shown(figure: Figure) -> bytes:
    return png(figure, dpi=figure.dpi)


def save(figure: Figure, run: Path, name: str) -> None:
    """Write `run/figures/NAME.png` to look at and `run/print/NAME.pdf` for papers.

    Neither holds dates or versions, which would change its bytes.
    """
    write_png(figure, run / "figures" / f"{name}.png")
    with atomic_write(run / "print" / f"{name}.pdf") as temporary:
        figure.savefig(temporary, format="pdf", metadata={"CreationDate": None})


def write_png(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(png(figure))


def png(figure: Figure, **settings: float) -> bytes:
    """Return a figure as PNG, in 256 colours where they are enough."""
    drawn, reduced = BytesIO(), BytesIO()
    figure.savefig(drawn, format="png", **settings)
    picture = _to_palette(Image.open(drawn).convert("RGB"))
    picture.save(reduced, format="PNG", optimize=True)
    return reduced.getvalue()


def _to_palette(picture: Image.Image) -> Image.Image:
    """Quantise to 256 colours (half the bytes), unless the difference would be visible.

    Plots and grey frames hardly change. The shades of photographs would have steps.
    """
    reduced = picture.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    error = ImageChops.difference(picture, reduced.convert("RGB"))
    return reduced if max(ImageStat.Stat(error).mean) < 1 else picture
