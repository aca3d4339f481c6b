"""Stochastic latent residual video prediction: README.md says in which order to read the files."""

__version__ = "0.2.0"


def __getattr__(name: str):
    """Import `load_pretrained` when it is asked for: not every user of the package loads models."""
    if name == "load_pretrained":
        from srvp.store import load_pretrained

        return load_pretrained
    raise AttributeError(f"module 'srvp' has no attribute {name!r}")
