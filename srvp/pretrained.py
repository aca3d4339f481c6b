"""Published models: weights and a card each in `models/`, the weights tracked by DVC."""

from torch import nn

from srvp.config import Experiment
from srvp.files import repository_root
from srvp.training import load_model


def load_pretrained(name: str, device: str = "cpu") -> tuple[nn.Module, Experiment]:
    """Return a published model, in evaluation mode, and the experiment that made it.

    Args:
        name: of its card in `models/`, such as `quick`.
        device: `cpu`, `cuda`, `mps`, or `auto` for an accelerator if there is one.

    Raises:
        ValueError: no model of that name is published.
        FileNotFoundError: its weights have not been fetched.
    """
    folder = repository_root() / "models"
    published = sorted(card.stem for card in folder.glob("*.md"))
    if name not in published:
        raise ValueError(f"no published model is called {name!r}: there are {published}")
    path = folder / f"{name}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: fetch it by `dvc pull models/{path.name}`")
    return load_model(path, device)
