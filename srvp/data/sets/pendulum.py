"""A pendulum: a weight on a rod that swings, or goes round, without friction.

Frames show pixels 0 and 1, usually 32x32. The pendulum is 1 m long, and a frame 0.1 s, so that a
small swing takes 20 frames:

    angle'' = -(g / l) sin(angle)           0: hanging down; positive: to the right

It is simulated by the classical Runge-Kutta method (order 4).
"""

import math
from pathlib import Path

import numpy as np

from srvp.data.config import DataConfig
from srvp.data.sets import simulated

STIFFNESS = 9.81  # g / l, per second squared
FRAME_TIME = 0.1  # seconds between two stored frames
STEPS = 10  # of the Runge-Kutta method per frame: its error stays below 1e-6 over 100 frames
FASTEST = 3.0  # radians per second at the start

UNITS = 32  # height and width of a frame; all lengths below are in this unit
CENTRE = 16.0  # where the rod is held
LENGTH = 10.0  # of the rod
ROD = 0.75  # half its thickness
RADIUS = 3.0  # of the weight


def prepare(raw: Path, out: Path, config: DataConfig) -> None:
    """Make the set: train/ and test/, with `angles` and `angular_velocities` of every frame.

    These are radians in [-pi, pi), and radians per second.

    Args:
        raw: is not read.
        out: folder of the prepared set.
        config: size, seed, frame step, number and length of the test videos.
    """
    for request in simulated.requests(config):
        angles, velocities = simulate(request.random, request.count, request.frames)
        videos = (render(path, config.size) for path in angles)
        simulated.write(out, request, config, videos, angles=angles, angular_velocities=velocities)


def simulate(
    random: np.random.Generator, count: int, frames: int, rate: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Let N pendulums swing through T frames, of which `rate` take the time of one.

    Returns:
        Angles and angular velocities `(N, T)`. Fewer pendulums or frames are the first of more.
    """
    widest = np.array([math.pi, FASTEST])
    return swing(random.uniform(-widest, widest, (count, 2)).T, frames, rate)


def swing(start: np.ndarray, frames: int, rate: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Let pendulums swing from angles and angular velocities `(2, N)`.

    Returns:
        Angles in [-pi, pi) and angular velocities `(N, frames)`, `rate` frames every 0.1 s.
    """
    state, states = start, [start]
    for _ in range(frames - 1):
        for _ in range(STEPS):
            state = _step(state, FRAME_TIME / STEPS / rate)
        states.append(state)
    angles, velocities = np.stack(states, axis=-1)
    return (angles + math.pi) % (2 * math.pi) - math.pi, velocities


def _step(state: np.ndarray, time: float) -> np.ndarray:
    k_1 = _slope(state)
    k_2 = _slope(state + time / 2 * k_1)
    k_3 = _slope(state + time / 2 * k_2)
    k_4 = _slope(state + time * k_3)
    return state + time / 6 * (k_1 + 2 * k_2 + 2 * k_3 + k_4)


def _slope(state: np.ndarray) -> np.ndarray:
    angle, velocity = state
    return np.stack([velocity, -STIFFNESS * np.sin(angle)])


def render(angles: np.ndarray, size: int) -> np.ndarray:
    """Show a pendulum at angles `(T,)`: bool `(T, size, size)`."""
    row, column = (centres - CENTRE for centres in simulated.pixel_centres(size, UNITS))
    down, right = np.cos(angles)[:, None, None], np.sin(angles)[:, None, None]
    along = np.clip(row * down + column * right, 0, LENGTH)  # foot on the rod
    rod = np.hypot(row - along * down, column - along * right) <= ROD
    return rod | (np.hypot(row - LENGTH * down, column - LENGTH * right) <= RADIUS)
