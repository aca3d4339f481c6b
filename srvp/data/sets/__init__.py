"""The data sets: a file each, from the raw files of their owners to a prepared set.

A file has `prepare(raw, out, config)`: it reads the owners' files in the folder `raw` and writes
the folds `train` and `test` in the folder `out` by means of `srvp.data.staging`. A file that draws
its training videos also has `open_training(config, folder, device)`, which returns one source of
training and one of validation videos. Where the truth can be simulated, it has `PerfectModel`. A
data set is a file here and its row in the table.
"""

from typing import NamedTuple


class DataSet(NamedTuple):
    """A row of the table."""

    title: str  # as papers call it
    module: str  # file in this folder
    raw: str  # folder of its raw files in `data/`
    channels: int | None = None  # of its frames; None: as `data.channels` says
    actions: int = 0  # values per frame of the actions that are stored
    drawn: bool = False  # the file's `open_training` draws the training videos; none are stored
    simulated: bool = False  # the file's `PerfectModel` draws futures of its test videos


SETS = {
    "smmnist": DataSet("SM-MNIST", "moving_mnist", "mnist", channels=1, drawn=True, simulated=True),
    "dmmnist": DataSet("DM-MNIST", "moving_mnist", "mnist", channels=1, drawn=True, simulated=True),
    "kth": DataSet("KTH", "kth", "kth", channels=1),
    "human36m": DataSet("Human3.6M", "human36m", "human36m", channels=3),
    "bair": DataSet("BAIR", "bair", "bair", channels=3, actions=4),
    "box": DataSet("ball in a box", "box", "simulated", channels=1),
    "pendulum": DataSet("pendulum", "pendulum", "simulated", channels=1),
    "videos": DataSet("own videos", "videos", "videos"),
}
