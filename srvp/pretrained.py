"""Published models: a folder each in `models/`, with a card, whose weights DVC tracks.

A folder holds `README.md`, the card; `model.safetensors` and `training.csv`, from `srvp.publish`;
and the scores by the full protocol, from `srvp.evaluation`.
"""

from torch import nn

from srvp.config import Experiment
from srvp.files import repository_root
from srvp.training import MODEL_FILE, load_model

CARD_FILE = "README.md"


def load_pretrained(name: str, device: str = "cpu") -> tuple[nn.Module, Experiment]:
    """Return a published model, in evaluation mode, and the experiment that made it.

    Args:
        name: of its folder in `models/`, such as `smmnist_cpu`.
        device: `cpu`, `cuda`, `mps`, or `auto` for an accelerator if there is one.

    Raises:
        ValueError: no model of that name is published.
        FileNotFoundError: its weights have not been fetched.
    """
    folder = repository_root() / "models"
    published = sorted(card.parent.name for card in folder.glob(f"*/{CARD_FILE}"))
    if name not in published:
        raise ValueError(f"no published model is called {name!r}: there are {published}")
    path = folder / name / MODEL_FILE
    if not path.is_file():
        where = path.relative_to(repository_root())
        raise FileNotFoundError(f"{where} is missing: fetch it by `dvc pull {where}`")
    return load_model(path, device)
