"""Layers of a video: windows that move, found in given frames, cut out of them, and pasted.

A layer has a content, n x n pixels, and a place, the centre of its window, in every frame. Frames
are the sum of their layers. All of it is arithmetic on the given frames: nothing here is learnt.

    find       places in each frame by itself: a mixture of Gaussians of the brightness
    link       which layer is which from frame to frame
    separate   contents and exact places: least squares, in turns
    follow     exact places of known contents in later frames
    paste      frames of layers at any places

Shapes: B clips, T frames, K layers, C channels; x (B, T, C, H, H); contents (B, K, C, n, n); places
(B, T, K, 2), row and column in pixels, fractions allowed.
"""

from functools import reduce
from itertools import permutations

import torch
import torch.nn.functional as F
from torch import Tensor

CELLS = 16  # places are first looked for in frames of 16x16 cells
ROUNDS = 8  # of the mixture: means move by less than a tenth of a pixel after them
SHARPENED = 2  # times: what is cut and pasted between pixels is blurred by both
UNEXPLAINED = 0.1  # of a frame's square: more than layers at exact places leave
SMALL = 1e-4  # brightness of a cell that an empty frame stands for: its layers are in the middle


def find(brightness: Tensor, layers: int, width: float) -> Tensor:
    """Find layers in frames, each by itself: expectation maximisation from the principal axis.

    Args:
        brightness: `(N, H, H)`, at least 0.
        layers: K.
        width: standard deviation of a layer's brightness, pixels.

    Returns:
        Places `(N, K, 2)`, in no particular order.
    """
    cell = brightness.shape[-1] / CELLS
    mass = F.adaptive_avg_pool2d(brightness[:, None], CELLS)[:, 0] + SMALL
    grid = torch.arange(CELLS, dtype=mass.dtype, device=mass.device)
    places = _spread_out(mass, grid, layers)
    for _ in range(ROUNDS):
        distance = (grid - places[..., None]).square()  # (N, K, 2, cells)
        squares = distance[..., 0, :, None] + distance[..., 1, None, :]
        share = (-squares / (2 * (width / cell) ** 2)).softmax(dim=1) * mass[:, None]
        rows, columns = share.sum(dim=-1), share.sum(dim=-2)
        places = torch.stack([rows @ grid, columns @ grid], dim=-1)
        places = places / rows.sum(dim=-1).clamp(min=SMALL)[..., None]
    return (places + 0.5) * cell - 0.5


def _spread_out(mass: Tensor, grid: Tensor, layers: int) -> Tensor:
    """Return places `(N, K, 2)` along the axis in which the brightness is spread the most."""
    rows, columns = mass.sum(dim=-1), mass.sum(dim=-2)
    total = rows.sum(dim=-1, keepdim=True)
    centre = torch.stack([rows @ grid, columns @ grid], dim=-1) / total
    row, column = grid - centre[:, :1], grid - centre[:, 1:]
    var_row = (rows * row.square()).sum(dim=-1, keepdim=True) / total
    var_column = (columns * column.square()).sum(dim=-1, keepdim=True) / total
    covariance = torch.einsum("nij,ni,nj->n", mass, row, column)[:, None] / total
    half = (var_row - var_column) / 2
    angle = torch.atan2(covariance, half) / 2
    deviation = ((var_row + var_column) / 2 + (half.square() + covariance.square()).sqrt()).sqrt()
    axis = deviation * torch.cat([angle.cos(), angle.sin()], dim=-1)
    steps = (
        torch.linspace(-0.8, 0.8, layers, device=mass.device) if layers > 1 else grid.new_zeros(1)
    )
    return centre[:, None] + steps[:, None] * axis[:, None]


def link(places: Tensor) -> Tensor:
    """Put the layers into the same order at all times, layers keeping their speed.

    It begins in the frame where they are farthest apart, and goes on from there to both ends.
    """
    count, frames, layers = places.shape[:3]
    orders = torch.tensor(list(permutations(range(layers))), device=places.device)
    clips = torch.arange(count, device=places.device)
    apart = (places[:, :, :, None] - places[:, :, None]).norm(dim=-1)
    apart = apart + 1e9 * torch.eye(layers, device=places.device)
    first = apart.amin(dim=(-2, -1)).argmax(dim=1)
    ordered = places.clone()
    for direction in (1, -1):
        last, speed, t = places[clips, first], torch.zeros_like(places[:, 0]), first
        for _ in range(frames - 1):
            t = t + direction
            inside = ((t >= 0) & (t < frames))[:, None, None]
            now = ordered[clips, t.clamp(0, frames - 1)]
            choices = now[:, orders]  # (B, orders, K, 2)
            misses = (choices - (last + speed)[:, None]).square().sum(dim=(-2, -1))
            now = torch.where(inside, choices[clips, misses.argmin(dim=1)], now)
            ordered[clips, t.clamp(0, frames - 1)] = now
            speed = torch.where(inside, now - last, speed)
            last = torch.where(inside, now, last)
    return ordered


def separate(x: Tensor, places: Tensor, n: int, rounds: int) -> tuple[Tensor, Tensor]:
    """Cut layers out of frames that are their sum, and find their exact places, in turns.

    A content begins as what its windows have in common. Each round explains away what the other
    layers show (Landweber's step to the least squares), then moves every window by a Gauss-Newton
    step of at most one pixel.

    Returns:
        Contents and places.
    """
    contents, darkest = None, x.amin(dim=(1, 2, 3, 4), keepdim=True)  # of each clip
    for i in range(rounds):
        seen = cut(x, places, n)  # (B, T, K, C, n, n)
        if contents is None:
            # What is common: the value nearest to zero, as a layer that passes by only adds.
            contents = reduce(_nearer_to_zero, seen.unbind(dim=1))
        contents = contents + _unexplained(seen, contents, places).mean(dim=1)
        contents = contents.maximum(darkest).clamp(max=1)
        if 0 < i < rounds - 1:
            unexplained = _unexplained(seen, contents, places)
            places = places - _correction(unexplained, _steps(contents))
    for _ in range(SHARPENED):
        missing = x - paste(contents, places, x.shape[-1]).clamp(-1, 1)
        contents = contents + cut(missing, places, n).mean(dim=1)
        contents = contents.maximum(darkest).clamp(max=1)
    offset = _off_centre(contents)
    return _windows(contents, offset[:, :, None], n)[:, :, 0], places + offset[:, None]


def _nearer_to_zero(one: Tensor, other: Tensor) -> Tensor:
    return torch.where(other.abs() < one.abs(), other, one)


def _off_centre(contents: Tensor) -> Tensor:
    """Return how far the brightness of contents is from their middle, whole pixels `(B, K, 2)`."""
    mass = contents.abs().mean(dim=2)
    position = torch.arange(mass.shape[-1], device=mass.device) - (mass.shape[-1] - 1) / 2
    moments = [mass.sum(dim=axis) @ position for axis in (-1, -2)]
    total = mass.sum(dim=(-2, -1)).clamp(min=SMALL)
    return (torch.stack(moments, dim=-1) / total[..., None]).round()


def follow(x: Tensor, found: Tensor, before: Tensor, contents: Tensor, rounds: int) -> Tensor:
    """Follow known contents through later frames, to exact places, one frame after the other.

    Gauss-Newton steps begin from uniform motion. In frames that this leaves unexplained, they also
    begin from the places found there, in every order; the best places are taken.

    Args:
        x: the later frames, `(B, T, C, H, H)`.
        found: places found in each of them, in any order, `(B, T, K, 2)`.
        before: exact places in the two frames before, `(B, 2, K, 2)`.
        contents: of the layers.
        rounds: Gauss-Newton steps.
    """
    followed, steps = list(before.unbind(dim=1)), _steps(contents)
    orders = torch.tensor(list(permutations(range(found.shape[2]))), device=x.device)
    for t in range(found.shape[1]):
        frame, candidates = x[:, t : t + 1], found[:, t : t + 1]
        uniform = 2 * followed[-1] - followed[-2]
        best, missed = _settle(frame, uniform[:, None], contents, steps, rounds)
        lost = (missed > UNEXPLAINED * frame.square().sum(dim=(1, 2, 3, 4))).nonzero()[:, 0]
        if len(lost):
            clip = lost.repeat(len(orders))  # every lost clip with every order
            guesses = candidates[lost][:, :, orders].movedim(2, 0).flatten(0, 1)
            given = frame[clip], guesses, contents[clip], steps[clip]
            guesses, errors = _settle(*given, rounds)
            errors, chosen = errors.view(len(orders), -1).min(dim=0)
            guesses = guesses.unflatten(0, (len(orders), -1))
            guesses = guesses[chosen, torch.arange(len(lost), device=x.device)]
            better = errors < missed[lost]
            best[lost[better]] = guesses[better]
        followed.append(best[:, 0])
    return torch.stack(followed[2:], dim=1) if len(followed) > 2 else found


def _settle(
    x: Tensor, places: Tensor, contents: Tensor, steps: Tensor, rounds: int
) -> tuple[Tensor, Tensor]:
    """Correct places in frames `(B, 1, C, H, H)`; return them and what stays unexplained `(B,)`."""
    for _ in range(rounds):
        seen = cut(x, places, contents.shape[-1])
        places = places - _correction(_unexplained(seen, contents, places), steps)
    missed = x - paste(contents, places, x.shape[-1]).clamp(-1, 1)
    return places, missed.square().sum(dim=(1, 2, 3, 4))


def _unexplained(seen: Tensor, contents: Tensor, places: Tensor) -> Tensor:
    """Return what windows show and their layers do not: `(B, T, K, C, n, n)`."""
    n, total = contents.shape[-1], contents[:, None]
    for step in range(1, contents.shape[1]):
        ahead = places - places.roll(step, dims=2)  # where my window begins in the other's
        others = _windows(contents.roll(step, dims=1), ahead.transpose(1, 2), n)
        total = total + others.transpose(1, 2)
    return seen - total.clamp(-1, 1)


def _steps(contents: Tensor) -> Tensor:
    """Return what turns a difference of windows into a Gauss-Newton step, `(B, K, C n n, 2)`."""
    edges = torch.stack(torch.gradient(contents, dim=(-2, -1)), dim=-1).flatten(2, -2)
    # The added 1 keeps a content without edges where it is.
    squares = edges.mT @ edges + torch.eye(2, device=edges.device)
    return edges @ torch.linalg.inv(squares)


def _correction(unexplained: Tensor, steps: Tensor) -> Tensor:
    """Return the step of the places that explains the most, `(B, T, K, 2)`."""
    differences = unexplained.flatten(3).transpose(1, 2)  # (B, K, T, C n n)
    return (differences @ steps).transpose(1, 2).clamp(-1, 1)


def cut(x: Tensor, places: Tensor, n: int) -> Tensor:
    """Cut windows of n x n pixels: `(B, T, K, C, n, n)`; beyond the frame there is nothing."""
    return _windows(x, places - (n - 1) / 2, n)


def _windows(images: Tensor, corners: Tensor, n: int) -> Tensor:
    """Cut M windows of n x n pixels out of each image, interpolating linearly.

    Args:
        images: `(A, B, C, H, H)`.
        corners: rows and columns of the windows' first pixels, `(A, B, M, 2)`.

    Returns:
        `(A, B, M, C, n, n)`.
    """
    size, offset = images.shape[-1], torch.arange(n, dtype=images.dtype, device=images.device)
    # From -1 for the first pixel to 1 for the last, as `grid_sample` has it; column before row.
    row, column = (corners.flatten(0, 1)[..., None] + offset).mul(2 / (size - 1)).sub(1).unbind(-2)
    grid = torch.stack(torch.broadcast_tensors(column[..., None, :], row[..., None]), dim=-1)
    seen = F.grid_sample(images.flatten(0, 1), grid.flatten(1, 2), align_corners=True)
    return seen.unflatten(2, (-1, n)).transpose(1, 2).unflatten(0, corners.shape[:2])


def paste(contents: Tensor, places: Tensor, size: int) -> Tensor:
    """Return the sum of layers at their places, frames `(B, T, C, size, size)`; gradients pass."""
    n = contents.shape[-1]
    rows, columns = _interpolation(places, n, size).unbind(dim=-3)  # (B, T, K, n, size)
    wide = contents[:, None] @ columns[..., None, :, :]  # (B, T, K, C, n, size)
    wide = wide.movedim(2, 3).flatten(3, 4)  # of all layers, one above the other
    return rows.flatten(2, 3)[:, :, None].mT @ wide


def _interpolation(centre: Tensor, n: int, size: int) -> Tensor:
    """Return matrices `(..., n, size)` that read n pixels around a centre, linearly."""
    offset = torch.arange(n, dtype=centre.dtype, device=centre.device) - (n - 1) / 2
    pixel = torch.arange(size, dtype=centre.dtype, device=centre.device)
    distance = centre[..., None, None] + (offset[:, None] - pixel)
    return F.relu(1 - distance.abs())
