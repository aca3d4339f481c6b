"""Stochastic latent residual video prediction: see README.md for the order to read things in."""

__version__ = "0.1.0"

from srvp.models import srvp as srvp  # registers SRVP, so that params.yaml can name it
from srvp.models import svg as svg  # and SVG
from srvp.pretrained import load_pretrained as load_pretrained
