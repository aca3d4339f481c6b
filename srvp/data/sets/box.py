"""A ball in a box: it moves in a straight line and bounces off the walls without loss.

The set of KVAE (Fraccaro et al., 2017), made anew: 5,000 training videos of 20 frames of 32x32
pixels, 0 or 1. It is not their set, and numbers do not compare. Their script draws the same random
quantities, but its physics engine (pymunk) notices a wall only when the ball is in it already; here
reflections are exact. Its ball is drawn at whole pixels, with a line from the centre to the right.

Lengths are in 32nds of a frame: at the usual size, in pixels.
"""

import math
from pathlib import Path

import numpy as np

from srvp.data.config import DataConfig
from srvp.data.sets import simulated

UNITS = 32  # height and width of a frame
CENTRE = 16.0
WALL = 14.0  # distance of the four walls from the centre
THICKNESS = 1.0  # of the walls
RADIUS = 3.0  # of the ball
FRAME_TIME = 0.2  # between two frames
SPEEDS = (10.0, 15.0)  # range of the ball's, per unit of time
SPREAD = 10.0  # standard deviation of the first position about the centre ...
FARTHEST = 10.0  # ... on each axis, where it is cut off


def prepare(raw: Path, out: Path, config: DataConfig) -> None:
    """Make the set: train/ and test/, with `positions` and `speeds` of the ball in every frame.

    These are row and column of its centre in pixels, and pixels per stored frame.

    Args:
        raw: is not read.
        out: folder of the prepared set.
        config: size, seed, frame step, number and length of the test videos.
    """
    pixels = config.size / UNITS
    for request in simulated.requests(config):
        positions, speeds = simulate(request.random, request.count, request.frames)
        videos = (render(path, config.size) for path in positions)
        simulated.write(
            out, request, config, videos, positions=pixels * positions, speeds=pixels * speeds
        )


def simulate(
    random: np.random.Generator, count: int, frames: int, rate: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Let N balls move through T frames, of which `rate` take the time of one.

    Returns:
        Positions and speeds per frame, row and column: `(N, T, 2)`. Fewer balls or frames are the
        first of more.
    """
    starts, speeds = np.array([_draw(random) for _ in range(count)]).swapaxes(0, 1)[..., None, :]
    return reflect(starts + np.arange(frames)[:, None] * speeds / rate, speeds / rate)


def _draw(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw a ball's first position, and its speed per frame."""
    angle, speed = random.uniform(0, 2 * math.pi), random.uniform(*SPEEDS)
    offset = np.clip(SPREAD * random.standard_normal(2), -FARTHEST, FARTHEST)
    return CENTRE + offset, FRAME_TIME * speed * np.array([math.sin(angle), math.cos(angle)])


def reflect(positions: np.ndarray, speeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where balls are that would be at `positions`, with `speeds`, if there were no walls.

    A room beside a mirror is the room mirrored: the free path is folded back, however far it went.
    """
    reach = WALL - RADIUS  # of the ball's centre
    rooms = np.floor((positions - CENTRE + reach) / (2 * reach))  # 0: inside
    direction = np.where(rooms % 2 == 0, 1.0, -1.0)
    return CENTRE + direction * (positions - CENTRE - 2 * reach * rooms), direction * speeds


def render(path: np.ndarray, size: int) -> np.ndarray:
    """Show a ball at positions `(T, 2)`, with the walls: bool `(T, size, size)`."""
    row, column = simulated.pixel_centres(size, UNITS)
    distance = np.maximum(abs(row - CENTRE), abs(column - CENTRE))
    walls = (distance >= WALL) & (distance < WALL + THICKNESS)
    ball_row, ball_column = path[:, :, None, None].swapaxes(0, 1)
    return walls | (np.hypot(row - ball_row, column - ball_column) <= RADIUS)
