"""Stochastic latent residual video prediction: see README.md for the order to read things in."""

__version__ = "0.1.0"

from srvp import model as model  # registers SRVP, so that params.yaml can name it
from srvp.baselines import svg as svg  # and SVG
from srvp.pretrained import load_pretrained as load_pretrained
