"""How long SVG-LP trains and generates beside the public code, on a CPU.

    python benchmarks/svg.py SVG --threads 1    # path of a checkout of github.com/edenton/svg

Both take steps on the same random frames and sample futures of the same clips, in turns and in one
process, in float32, at the published sizes of Moving MNIST (`svg_smmnist`). Theirs are the public
networks and the loops of the public scripts: every frame but the first and last is encoded twice in
training, and the given frames are encoded anew for every sample. The ratios are of medians.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from srvp.experiment import Experiment, load_experiment
from srvp.files import project_root
from srvp.models.interface import Clips
from srvp.training.run import Run

FUTURES, FRAMES = 2, 20  # sampled of each clip


class Public:
    """The networks of the public code, and the loops around them."""

    def __init__(self, checkout: Path, experiment: Experiment):
        sys.path.insert(0, str(checkout))
        torch.Tensor.cuda = lambda self: self  # the public code knows GPUs only
        import models.dcgan_64 as dcgan
        from models.lstm import gaussian_lstm, lstm

        self.config, self.channels = experiment.model, experiment.data.channels
        self.dcgan, self.lstm, self.gaussian_lstm = dcgan, lstm, gaussian_lstm
        self.build(experiment.training.batch_size)
        lr = experiment.training.lr
        self.optimizers = [torch.optim.Adam(network.parameters(), lr=lr) for network in self.all]

    def build(self, batch: int) -> None:
        c = self.config
        self.encoder = self.dcgan.encoder(c.g_dim, self.channels)
        self.decoder = self.dcgan.decoder(c.g_dim, self.channels)
        sizes = (c.rnn_size, c.predictor_layers, batch)
        self.predictor = self.lstm(c.g_dim + c.z_dim, c.g_dim, *sizes)
        self.posterior, self.prior = (
            self.gaussian_lstm(c.g_dim, c.z_dim, c.rnn_size, layers, batch)
            for layers in (c.posterior_layers, c.prior_layers)
        )
        self.recurrent = [self.predictor, self.posterior, self.prior]
        self.all = [*self.recurrent, self.encoder, self.decoder]

    def start(self, batch: int) -> None:
        for network in self.recurrent:
            network.batch_size = batch
            network.hidden = network.init_hidden()

    def step(self, x: list[Tensor]) -> None:
        """Take a training step on frames `(B, C, H, W)`."""
        for network in self.all:
            network.zero_grad()
        self.start(len(x[0]))
        mse, kl = 0, 0
        for i in range(1, len(x)):
            h, maps = self.encoder(x[i - 1])
            target = self.encoder(x[i])[0]
            if i < self.config.conditioning_frames:
                skip = maps
            z, mean, logvar = self.posterior(target)
            _, prior_mean, prior_logvar = self.prior(h)
            predicted = self.decoder([self.predictor(torch.cat([h, z], 1)), skip])
            mse = mse + nn.functional.mse_loss(predicted, x[i])
            ratio = (logvar.exp() + (mean - prior_mean) ** 2) / (2 * prior_logvar.exp())
            kl = kl + ((prior_logvar - logvar) / 2 + ratio - 0.5).sum() / len(x[0])
        (mse + kl * self.config.beta).backward()
        for optimizer in self.optimizers:
            optimizer.step()

    @torch.no_grad()  # theirs keeps what a gradient would need, until memory is full
    def generate(self, x: list[Tensor]) -> None:
        given = self.config.conditioning_frames
        for _ in range(FUTURES):
            self.start(len(x[0]))
            frame = x[0]
            for i in range(1, given + FRAMES):
                h, maps = self.encoder(frame)
                if i < given:
                    skip = maps
                    z = self.posterior(self.encoder(x[i])[0])[0]
                    self.prior(h)
                    self.predictor(torch.cat([h, z], 1))
                    frame = x[i]
                else:
                    z = self.prior(h)[0]
                    frame = self.decoder([self.predictor(torch.cat([h, z], 1)), skip])


def sides(given: argparse.Namespace) -> dict[str, dict[str, Callable[[], object]]]:
    """Return by task the functions of either side."""
    experiment = load_experiment(project_root() / "params.yaml", "svg_smmnist")
    training = replace(experiment.training, batch_size=given.batch_size, device="cpu")
    experiment = replace(experiment, training=training)
    public, run = Public(given.checkout, experiment), Run(experiment, torch.device("cpu"))
    run.model.train()
    x = torch.rand(given.batch_size, training.frames, 1, 64, 64)
    frames = [frame.contiguous() for frame in x.unbind(1)]
    conditioning = experiment.evaluation.conditioning_frames
    noise = run.model.draw_noise(
        given.batch_size * FUTURES, conditioning + FRAMES, torch.Generator()
    )

    @torch.inference_mode()
    def generate() -> None:
        run.model.eval()
        run.model.predict(run.model.condition(x[:, :conditioning]), FRAMES, noise)
        run.model.train()

    return {
        "training step": {
            "public": lambda: public.step(frames),
            "ours": lambda: run.update(Clips(x)),
        },
        "generation": {"public": lambda: public.generate(frames), "ours": generate},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkout", type=Path, help="of the public code of SVG")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    tasks = ("training step", "generation")
    parser.add_argument("--tasks", nargs="+", choices=tasks, default=tasks)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(f"{given.batch_size} clips, {given.threads} thread(s), {given.rounds} rounds")
    both = sides(given)
    for task in given.tasks:
        pair = both[task]
        times: dict[str, list[float]] = {side: [] for side in pair}
        for _ in range(given.rounds + 1):
            for side, function in pair.items():
                start = time.perf_counter()
                function()
                times[side].append(time.perf_counter() - start)
        public, ours = (median(times[side][1:]) for side in pair)  # the first warms up
        print(f"{task}: public {public:.2f} s, ours {ours:.2f} s, ratio {ours / public:.2f}")


if __name__ == "__main__":
    main()
