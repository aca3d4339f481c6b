"""The metrics: a file each in this folder, and their rows."""

from typing import NamedTuple


class Metric(NamedTuple):
    """A row of the table."""

    label: str  # with the unit
    lower_is_better: bool
    decimals: int  # in tables
    frames: int = 1  # fewest frames of a clip that it can be computed of
    videos: int = 1  # fewest clips


METRICS = {
    "psnr": Metric("PSNR (dB)", lower_is_better=False, decimals=2),
    "ssim": Metric("SSIM", lower_is_better=False, decimals=4),
    "lpips": Metric("LPIPS", lower_is_better=True, decimals=4),
    "fvd": Metric("FVD", lower_is_better=True, decimals=0, frames=9, videos=2),
}
