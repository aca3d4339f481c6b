"""The data sets: a file each, from the raw files of their owners to a prepared set.

A file has `prepare(raw, out, config)`. A data set is a file here and its row in the table.
"""

from typing import NamedTuple


class DataSet(NamedTuple):
    """A row of the table."""

    title: str  # as papers call it
    module: str  # file in this folder
    raw: str  # folder of its raw files in `data/`


SETS = {
    "smmnist": DataSet("SM-MNIST", "moving_mnist", "mnist"),
    "dmmnist": DataSet("DM-MNIST", "moving_mnist", "mnist"),
    "kth": DataSet("KTH", "kth", "kth"),
    "human36m": DataSet("Human3.6M", "human36m", "human36m"),
    "bair": DataSet("BAIR", "bair", "bair"),
    "videos": DataSet("own videos", "videos", "videos"),
}
