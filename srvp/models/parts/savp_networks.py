"""The networks of SAVP (`srvp.models.savp`): the posterior's encoder and the generator's cell.

Shapes: B clips, T frames, C channels; frames (B, C, H, W) in [0, 1]; y (B, Y), what is known at a
step besides images: the action, if there is one, and the output of an LSTM that steps on z.
"""

from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srvp.models.interface import VideoShape
from srvp.models.parts import cdna
from srvp.models.parts.tf_layers import (
    ConvLSTM,
    SameConv2d,
    State,
    full_precision,
    init_truncated_normal,
    instance_norm,
    lstm_update,
    rows_first,
    tile,
)

MOVED = 4  # images made by moving the pixels of the frame before
# By the size of frames: the layers' channels, in units of ngf, and whether they have an LSTM.
ENCODERS = {
    32: ((1, True), (2, True)),
    64: ((1, True), (2, True), (4, True)),
    128: ((1, False), (2, True), (4, True), (8, True)),
    256: ((1, False), (2, False), (4, True), (8, True), (8, True)),
}
DECODERS = {
    32: ((1, True), (1, False)),
    64: ((2, True), (1, True), (1, False)),
    128: ((8, True), (4, True), (2, False), (1, False)),
    256: ((8, True), (4, True), (2, False), (1, False), (1, False)),
}
Transformation = Literal["cdna", "dna", "flow"]


class PosteriorEncoder(nn.Module):
    """Infers z from pairs of successive frames: mean and log-variance."""

    def __init__(self, shape: VideoShape, nef: int, nz: int):
        super().__init__()
        widths = (2 * shape.channels + shape.actions, nef, 2 * nef, 4 * nef)
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 4, 2, 1) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(instance_norm(width) for width in widths[2:])
        self.mean = nn.Linear(4 * nef, nz)
        self.log_variance = nn.Linear(4 * nef, nz)
        _initialise(self)

    def forward(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Map pairs `(N, 2C + A, H, W)`, with the action at each pixel, to twice `(N, nz)`."""
        norms = [nn.Identity(), *self.norms]
        for convolution, norm in zip(self.convolutions, norms, strict=True):
            pairs = F.leaky_relu(norm(convolution(pairs)), 0.2)
        h = pairs.mean(dim=(2, 3))
        mean, log_variance = full_precision(self.mean(h)), full_precision(self.log_variance(h))
        return mean, log_variance.clamp(-10, 10)


class PooledConv2d(nn.Conv2d):
    """A convolution, then the mean over 2x2 pixels: one convolution with a stride of 2."""

    def __init__(self, channels: int, out: int, size: int):
        super().__init__(channels, out, size, 2, size // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, H, W)` to `(B, O, H / 2, W / 2)`."""
        merged = F.avg_pool2d(F.pad(self.weight, (1, 1, 1, 1)), 2, stride=1)
        return F.conv2d(x, merged, self.bias, self.stride, self.padding)


class UpsampledConv2d(nn.Conv2d):
    """Bilinear upsampling, zeros around the image, then a 3x3 convolution.

    Both are one convolution of the small image, with four times the channels: one for each place of
    a pixel in a block of 2x2.
    """

    def __init__(self, channels: int, out: int):
        super().__init__(channels, out, 3, padding=1)
        # A pixel of the upsampled row is a sum of small ones with weights (1, 3, 3, 1) / 4, at a
        # distance of 2: tap t of a kernel at place a of a block meets the small pixel d - 1 with
        # the weight number a + t - 2 d + 2.
        filter_ = {0: 0.25, 1: 0.75, 2: 0.75, 3: 0.25}
        merge = [
            [[filter_.get(a + t - 2 * d + 2, 0.0) for t in range(3)] for d in range(3)]
            for a in range(2)
        ]
        self.register_buffer("merge", torch.tensor(merge), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, H, W)` to `(B, O, 2H, 2W)`."""
        merged = torch.einsum("adt,bes,octs->oabcde", self.merge, self.merge, self.weight)
        y = F.pixel_shuffle(F.conv2d(x, merged.flatten(0, 2), padding=1), 2)
        return y + self.bias[:, None, None]


class Layer(nn.Module):
    """A convolution that changes the resolution, norm, ReLU and, in most layers, a ConvLSTM."""

    def __init__(self, convolution: nn.Conv2d, y_size: int, recurrent: bool):
        super().__init__()
        width = convolution.out_channels
        self.convolution = convolution
        self.norm = instance_norm(width)
        self.lstm = ConvLSTM(width + y_size, width, instance_norm) if recurrent else None

    def forward(self, x: Tensor, y: Tensor, state: State | None) -> tuple[Tensor, State | None]:
        """Return the layer's map, and its state after this step."""
        x = F.relu(self.norm(self.convolution(torch.cat([x, tile(y, x)], dim=1))))
        if self.lstm is None:
            return x, None
        state = self.lstm(torch.cat([x, tile(y, x)], dim=1), state)
        return state[1], state


class CellState(NamedTuple):
    """What the generator's cell remembers."""

    layers: list[State | None]
    z: State  # of the LSTM that steps on z, (B, nz)


class Cell(nn.Module):
    """Draws the next frame from a frame, the first one, z and the states of its LSTMs."""

    def __init__(self, shape: VideoShape, ngf: int, nz: int, transformation: Transformation):
        super().__init__()
        channels, y_size = shape.channels, shape.actions + nz
        self.transformation = transformation
        self.z_lstm = nn.Linear(2 * nz, 4 * nz) if nz else None
        encoder, decoder = ENCODERS[shape.size], DECODERS[shape.size]
        down = [2 * channels, *(width * ngf for width, _ in encoder)]
        up = [width * ngf for width, _ in decoder]
        skips = [0, *down[-2:0:-1]]  # channels that the layers of the decoder get from the encoder
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for i, (a, b) in enumerate(pairwise(down)):
            convolution = PooledConv2d(a + y_size, b, 3 if i else 5)
            self.down.append(Layer(convolution, y_size, encoder[i][1]))
        for i, (a, b) in enumerate(pairwise([down[-1], *up])):
            convolution = UpsampledConv2d(a + skips[i] + y_size, b)
            self.up.append(Layer(convolution, y_size, decoder[i][1]))
        if transformation == "cdna":
            side = shape.size >> len(encoder)
            self.motion = nn.Linear(down[-1] * side**2, cdna.TAPS * MOVED)
        else:
            self.motion = _head(ngf, (cdna.TAPS if transformation == "dna" else 2) * MOVED)
        images = MOVED + 3
        self.scratch = _head(ngf, channels)
        self.mask_features = _head(ngf, None)
        self.masks = SameConv2d(ngf + images * channels, images, 3)
        _initialise(self)
        if self.z_lstm is not None:
            nn.init.xavier_uniform_(self.z_lstm.weight)

    def forward(
        self, x: Tensor, first: Tensor, z: Tensor, action: Tensor | None, state: CellState | None
    ) -> tuple[cdna.Drawn, CellState]:
        """Draw the frame after x.

        Args:
            x: a frame `(B, C, H, W)`.
            first: the first frame of the clip.
            z: `(B, nz)`.
            action: taken at x `(B, A)`, if the model is given actions.
            state: None before the first frame.
        """
        layers = len(self.down) + len(self.up)
        state = CellState([None] * layers, (z.new_zeros(z.shape),) * 2) if state is None else state
        z_state = state.z
        if self.z_lstm is not None:
            z_state = lstm_update(self.z_lstm(torch.cat([z, z_state[1]], dim=1)), z_state[0])
        y = z_state[1] if action is None else torch.cat([action, z_state[1]], dim=1)
        h, maps, states = torch.cat([x, first], dim=1), [], []
        for i, layer in enumerate([*self.down, *self.up]):
            if i > len(self.down):
                h = torch.cat([h, maps[layers - i - 1]], dim=1)
            h, layer_state = layer(h, y, state.layers[i])
            maps.append(h)
            states.append(layer_state)
        drawn = self._draw(x, first, maps[len(self.down) - 1], h)
        return drawn, CellState(states, z_state)

    def _draw(self, x: Tensor, first: Tensor, smallest: Tensor, largest: Tensor) -> cdna.Drawn:
        kernels, moved = self._move(x, smallest, largest)
        scratch = full_precision(self.scratch(largest)).sigmoid()
        images = torch.cat([moved, torch.stack([x, first, scratch], dim=1)], dim=1)
        features = torch.cat([self.mask_features(largest), images.flatten(1, 2)], dim=1)
        masks = self.masks(features).softmax(dim=1)
        return cdna.Drawn(cdna.blend(masks, images), masks, images, kernels)

    def _move(self, x: Tensor, smallest: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
        """Return kernels, or flows, and the frame as they move it."""
        if self.transformation == "flow":
            flows = full_precision(self.motion(largest)).unflatten(1, (2, MOVED)).transpose(1, 2)
            return flows, cdna.warp(x, flows)
        raw = self.motion(rows_first(smallest) if self.transformation == "cdna" else largest)
        taps = raw.unflatten(1, (cdna.TAPS, MOVED)).transpose(1, 2)
        kernels = cdna.normalise(taps + cdna.identity(taps))
        return kernels, cdna.move(cdna.pad_symmetric(x), kernels)


def _head(ngf: int, out: int | None) -> nn.Sequential:
    """Two convolutions, or without `out` the first: the last has neither norm nor activation."""
    hidden = [SameConv2d(ngf, ngf, 3), instance_norm(ngf), nn.ReLU()]
    return nn.Sequential(*hidden, *([] if out is None else [SameConv2d(ngf, out, 3)]))


def _initialise(module: nn.Module) -> None:
    """Draw weights from a normal distribution of deviation 0.02, cut at 0.04; biases are 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            init_truncated_normal(layer.weight, 0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
