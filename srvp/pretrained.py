"""Published models: a folder each in `pretrained/`, with a card, whose weights DVC tracks.

A folder holds `README.md`, the card; `model.safetensors` and `training.csv`, from `srvp.publish`;
and the scores by the full protocol, from `srvp.evaluation.protocol`.
"""

from pathlib import Path

from torch import nn

from srvp.config import Experiment
from srvp.files import repository_root
from srvp.training.loop import MODEL_FILE, load_model

CARD_FILE = "README.md"


def published_folders() -> list[Path]:
    """Return the folders of all published models: those in `pretrained/` that have a card."""
    return sorted(card.parent for card in (repository_root() / "pretrained").glob(f"*/{CARD_FILE}"))


def published_results() -> list[Path]:
    """Return the folders of the published models that have been scored."""
    return [folder for folder in published_folders() if (folder / "metrics.json").is_file()]


def load_pretrained(name: str, device: str = "cpu") -> tuple[nn.Module, Experiment]:
    """Return a published model, in evaluation mode, and the experiment that made it.

    Args:
        name: of its folder in `pretrained/`, such as `smmnist_gpu`.
        device: `cpu`, `cuda`, `mps`, or `auto` for an accelerator if there is one.

    Raises:
        ValueError: no model of that name is published.
        FileNotFoundError: its weights have not been fetched.
    """
    published = {folder.name: folder for folder in published_folders()}
    if name not in published:
        raise ValueError(f"no published model is called {name!r}: there are {list(published)}")
    path = published[name] / MODEL_FILE
    if not path.is_file():
        where = path.relative_to(repository_root())
        raise FileNotFoundError(f"{where} is missing: fetch it by `dvc pull {where}`")
    return load_model(path, device)
