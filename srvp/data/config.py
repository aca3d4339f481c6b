"""The section `data` of an experiment: what the videos are."""

from dataclasses import dataclass
from typing import Annotated, Literal

from srvp.data.sets import SETS, DataSet
from srvp.schema import ConfigError, Count, Real, Whole, suggest


@dataclass(frozen=True)
class DataConfig:
    """What the videos are. Keys with a default are optional."""

    dataset: str  # a row of `srvp.data.sets.SETS`
    channels: Literal[1, 3]
    test_videos: Count  # number of test clips, the first of the official order
    test_frames: Count  # given and predicted frames of a test clip together
    seed: Whole = 42  # of the test clips and of the split into training and validation
    size: Annotated[int, 16] = 64  # height and width of a frame in pixels, a power of two
    actions: Whole = 0  # values per frame of the actions that the model is given; 0: none
    frame_step: Count = 1  # distance of a clip's frames in the stored video
    frame_rate: Real | None = None  # own videos: frames per second to store; all if not given
    crop: Literal["center"] | tuple[Whole, ...] | None = None  # own videos: or a box in pixels
    test_fraction: Real = 0.1  # own videos: share of those in no folder `test`, `train`, ...
    validation_fraction: Real = 0.05  # own videos: likewise

    def __post_init__(self) -> None:
        if self.dataset not in SETS:
            raise ConfigError(f"dataset is {self.dataset!r}{suggest(self.dataset, SETS)}")
        self._check_against(SETS[self.dataset])
        if self.seed >= 2**32:
            raise ConfigError(f"seed is {self.seed}; expected at most {2**32 - 1}, for NumPy")
        if self.size & (self.size - 1):
            raise ConfigError(f"size is {self.size}; expected a power of two, such as 64 or 128")
        for key in ("crop", "frame_rate"):
            if getattr(self, key) is not None and self.dataset != "videos":
                raise ConfigError(
                    f"{key} is for your own videos, but dataset is {self.dataset}, whose "
                    "preprocessing is published: remove it"
                )
        if isinstance(self.crop, tuple) and len(self.crop) != 4:
            raise ConfigError(f"crop is {list(self.crop)}; expected [left, upper, right, lower]")
        if self.test_fraction + self.validation_fraction >= 1:
            raise ConfigError(
                f"test_fraction and validation_fraction are {self.test_fraction} and "
                f"{self.validation_fraction}, which leaves no video to train on: lower them"
            )

    @property
    def split(self) -> dict[str, float]:
        """Return what decides the folds of own videos, for `srvp.data.folders.search`."""
        return {
            "test_fraction": self.test_fraction,
            "validation_fraction": self.validation_fraction,
            "seed": self.seed,
        }

    def _check_against(self, row: DataSet) -> None:
        if row.channels not in (None, self.channels):
            raise ConfigError(
                f"channels is {self.channels}, but {row.title} has {row.channels}: change it"
            )
        if row.drawn and self.frame_step != 1:
            raise ConfigError(
                f"frame_step is {self.frame_step}, but videos of {row.title} are drawn frame by "
                "frame: remove it"
            )
        actions = row.actions * self.frame_step  # of all frames that a step skips
        if self.actions not in (0, actions):
            raise ConfigError(
                f"actions is {self.actions}, but {row.title} has {row.actions} values per stored "
                f"frame; expected {f'0 or {actions}' if actions else 0}"
            )
