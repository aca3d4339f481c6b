"""Checkpoints of the public code of SV2P and SAVP, read without TensorFlow.

TensorFlow is not at hand to write one: the test writes the format itself, as TensorFlow's sources
describe it (`tensor_bundle.proto`, LevelDB's table format).
"""

import json
import struct
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import reference_savp as reference
import torch
from reference_savp import Variables, as_frames, channels_last
from test_savp_training import experiment

from srvp import commands
from srvp.models.interface import Clips
from srvp.models.official_savp import load
from srvp.models.savp import Noise
from srvp.models.tf_bundle import read_checkpoint
from srvp.store import load_model

TYPES = {"float32": 1, "float64": 2, "int32": 3, "int64": 9}


# A writer of checkpoints.


def number(n: int) -> bytes:
    return bytes([n & 127 | 128]) + number(n >> 7) if n > 127 else bytes([n])


def field(key: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return number(key << 3) + number(value)
    return number(key << 3 | 2) + number(len(value)) + value


def checksum(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    rotated = (crc >> 15) | (crc << 17) & 0xFFFFFFFF
    return struct.pack("<I", (rotated + 0xA282EAD8) % 2**32)


def block(entries: list[tuple[bytes, bytes]], compression: int = 0) -> bytes:
    """Keys share their beginning with the one before, but for each 16th, a restart."""
    content, restarts = b"", []
    for i, (key, value) in enumerate(entries):
        shared = 0
        if i % 16:
            before = entries[i - 1][0]
            shared = next(
                (n for n, (a, b) in enumerate(zip(before, key, strict=False)) if a != b),
                len(before),
            )
        else:
            restarts.append(len(content))
        content += number(shared) + number(len(key) - shared) + number(len(value))
        content += key[shared:] + value
    content += struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))
    return content + bytes([compression]) + checksum(content + bytes([compression]))


def write_checkpoint(
    prefix: Path, variables: dict[str, np.ndarray], shards: int = 1, compression: int = 0
) -> None:
    """Write `prefix.index` and its shards, with few entries per block."""
    data = [b""] * shards
    entries = [(b"", field(1, shards))]  # the header
    for i, (name, value) in enumerate(sorted(variables.items())):
        shard, raw = i % shards, value.tobytes()
        sizes = b"".join(field(2, field(1, size)) for size in value.shape)
        entry = field(1, TYPES[value.dtype.name]) + field(2, sizes)
        entry += field(3, shard) if shard else b""  # zeros are left out
        entry += field(4, len(data[shard])) if data[shard] else b""
        entry += field(5, len(raw)) + number(6 << 3 | 5) + checksum(raw)
        entries.append((name.encode(), entry))
        data[shard] += raw
    table, index = b"", []
    for start in range(0, len(entries), 30):
        part = entries[start : start + 30]
        content = block(part, compression)
        index.append((part[-1][0] + b"~", number(len(table)) + number(len(content) - 5)))
        table += content
    handles = b""
    for part in ([], index):
        content = block(part)
        handles += number(len(table)) + number(len(content) - 5)
        table += content
    table += handles.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)
    prefix.with_name(f"{prefix.name}.index").write_bytes(table)
    for shard, content in enumerate(data):
        name = f"{prefix.name}.data-{shard:05d}-of-{shards:05d}"
        prefix.with_name(name).write_bytes(content)


def some_variables() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    variables = {
        f"layer_{i // 7}/kernel_{i}": random.normal(size=(2, i % 5 + 1)).astype("float32")
        for i in range(100)
    }
    return variables | {
        "global_step": np.array(300000, "int64"),
        "some/doubles": random.normal(size=3),
        "some/empty": np.zeros((0, 4), "float32"),
        "some/integers": np.arange(4, dtype="int32"),
    }


# The format.


@pytest.mark.parametrize("shards", [1, 3])
def test_every_variable_comes_back(shards: int, tmp_path: Path) -> None:
    variables = some_variables()
    write_checkpoint(tmp_path / "model-300000", variables, shards)
    for path in (tmp_path, tmp_path / "model-300000", tmp_path / "model-300000.index"):
        read = read_checkpoint(path)
        assert read.keys() == variables.keys()
        for name, value in variables.items():
            assert read[name].dtype == value.dtype and np.array_equal(read[name], value)
    assert set(read_checkpoint(tmp_path, lambda name: "some/" in name)) == {
        name for name in variables if "some/" in name
    }


def test_the_newest_checkpoint_of_a_folder_is_read(tmp_path: Path) -> None:
    for step in (900, 1000, 20):
        write_checkpoint(tmp_path / f"model-{step}", {"step": np.array(step, "int64")})
    assert read_checkpoint(tmp_path)["step"] == 1000
    listed = 'model_checkpoint_path: "/elsewhere/model-20"\nall_model_checkpoint_paths: "..."\n'
    (tmp_path / "checkpoint").write_text(listed)
    assert read_checkpoint(tmp_path)["step"] == 20


def test_damaged_files_are_named(tmp_path: Path) -> None:
    prefix = tmp_path / "model-1"
    write_checkpoint(prefix, some_variables(), shards=2)
    index, shard = tmp_path / "model-1.index", tmp_path / "model-1.data-00001-of-00002"
    whole, data = index.read_bytes(), shard.read_bytes()
    shard.write_bytes(data[:40] + bytes([data[40] ^ 1]) + data[41:])
    with pytest.raises(ValueError, match=r"data-00001-of-00002 is damaged at layer_"):
        read_checkpoint(tmp_path)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"data-00001-of-00002 is missing"):
        read_checkpoint(tmp_path)
    shard.write_bytes(data)
    for start, end in pairwise(range(0, len(whole), len(whole) // 40)):
        for damaged in (
            whole[:end],
            whole[:start] + bytes([whole[start] ^ 4]) + whole[start + 1 :],
        ):
            index.write_bytes(damaged)
            with pytest.raises(ValueError, match=r"model-1.index is no index of a TensorFlow"):
                read_checkpoint(tmp_path)


def test_what_is_not_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no checkpoint of TensorFlow"):
        read_checkpoint(tmp_path)
    write_checkpoint(tmp_path / "model-1", some_variables(), compression=1)
    with pytest.raises(ValueError, match="it is compressed"):
        read_checkpoint(tmp_path)


# The models.

SV2P = {"context_frames": 2, "sequence_length": 4, "kl_weight": 0.008, "multi_latent": False}
SAVP = {"context_frames": 2, "sequence_length": 4, "nz": 3, "ngf": 4, "nef": 4, "kl_weight": 0.1}
ADAM = {"beta1_power": np.array(0.9, "float32"), "global_step": np.array(7, "int64")}


def old_name(name: str) -> str:
    """The name of April 2018, when the published weights were trained."""
    name = name.replace("savp_cell", "dna_cell").replace(
        "generator/latent", "generator/encoder/latent"
    )
    name = name.replace("discriminator/encoder/video/", "discriminator_encoder/video_")
    return name.replace("discriminator/video/", "discriminator/video_")


def archive(folder: Path, variables: Variables, hparams: dict, old: bool) -> None:
    """Write what a published archive holds, with the optimizer's memory."""
    values = {n: v.detach().numpy().astype("float32") for n, v in variables.items()}
    values |= {f"{name}/Adam_1": value for name, value in list(values.items())}
    values = {old_name(n) if old else n: v for n, v in values.items()} | ADAM
    values["generator/state_pred/weights"] = np.zeros((7, 3), "float32")
    write_checkpoint(folder / "model-7", values, shards=2)
    (folder / "model_hparams.json").write_text(json.dumps(hparams))


def clips(size: int) -> Clips:
    return Clips(torch.rand(2, 4, 1, size, size, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("old", [False, True])
def test_sv2p_predicts_what_its_checkpoint_does(old: bool, tmp_path: Path) -> None:
    x, variables = clips(16), Variables(1)
    noise = torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    true_frames = (torch.arange(3) < 2).expand(2, -1)
    settings = {"from_posterior": False, "kl_weight": 0.0, "dna": False}
    expected = reference.sv2p(variables, x, noise, true_frames, **settings)["frames"]
    archive(tmp_path, variables, SV2P, old)
    model = load(tmp_path)
    assert model.config.beta == 0.008 and model.config.posterior_frames == 4
    assert not model.training and tuple(model.shape) == (1, 16, 0)
    with torch.no_grad():
        futures = model.predict(model.condition(x.until(2)), 2, Noise(noise)).x
    torch.testing.assert_close(futures.double(), as_frames(expected[:, 1:]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("gan", [False, True])
def test_savp_predicts_what_its_checkpoint_does(gan: bool, old: bool, tmp_path: Path) -> None:
    x, variables = clips(32), Variables(2)
    pair = channels_last(x.frames[:, 0]).repeat(1, 1, 1, 2)
    reference.savp_encoder(variables, pair, 4, 3)  # so that its variables are there
    z = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(1))
    true_frames = (torch.arange(3) < 2).expand(2, -1)
    expected, *_ = reference.savp_pass(variables, x, z.double(), true_frames, 4, "cdna")
    hparams = SAVP
    if gan:
        hparams = SAVP | {"video_sn_gan_weight": 1.0, "video_sn_vae_gan_weight": 1.0}
        hparams |= {"ndf": 2, "clip_length": 4, "norm_layer": "instance"}
        for name in ("posterior", "prior"):
            judged, _ = reference.discriminator(variables, name, channels_last(x.frames), 2)
    archive(tmp_path, variables, hparams, old)
    model = load(tmp_path)
    assert model.config.shared_windows == old
    with torch.no_grad():
        given = model.condition(x.until(2))
        futures = model.predict(given, 2, Noise(z), context="prior").x
        torch.testing.assert_close(futures.double(), as_frames(expected[:, 1:]), atol=1e-4, rtol=0)
        if gan:
            judge = model.discriminators["prior"]
            logits = judge(x.frames, judge.normalised()).logits
            torch.testing.assert_close(logits.double(), judged.detach(), atol=1e-5, rtol=1e-5)


def test_the_command_writes_a_model_file(tmp_path: Path, monkeypatch) -> None:
    x, variables = clips(32), Variables(3)
    pair = channels_last(x.frames[:, 0]).repeat(1, 1, 1, 2)
    reference.savp_encoder(variables, pair, 4, 3)
    every = torch.ones(2, 3).bool()
    reference.savp_pass(variables, x, torch.zeros(2, 3, 3).double(), every, 4, "cdna")
    archive(tmp_path, variables, SAVP, old=True)
    monkeypatch.setattr(commands, "_experiment", experiment)
    commands.import_savp(tmp_path, "savp", tmp_path / "new" / "model.safetensors")
    model, settings = load_model(tmp_path / "new" / "model.safetensors")
    assert settings.model == model.config and model.config.kl_weight == 0.1
    assert model.state_dict()["cell.masks.bias"].equal(load(tmp_path).cell.masks.bias)
    other = replace(experiment("savp"), data=replace(experiment("savp").data, size=64))
    monkeypatch.setattr(commands, "_experiment", lambda name: other)
    with pytest.raises(ValueError, match=r"size=32.* but experiments.savp is .*size=64"):
        commands.import_savp(tmp_path, "savp", None)


def test_checkpoints_of_other_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"model_hparams.json is missing"):
        load(tmp_path)
    (tmp_path / "model_hparams.json").write_text(json.dumps(SAVP | {"learn_prior": True}))
    write_checkpoint(tmp_path / "model-1", {"global_step": np.array(1, "int64")})
    with pytest.raises(ValueError, match="learn_prior = True; only False is read"):
        load(tmp_path)
    (tmp_path / "model_hparams.json").write_text(json.dumps(SAVP))
    with pytest.raises(ValueError, match="neither of SAVP nor of SV2P"):
        load(tmp_path)


def test_a_checkpoint_of_other_sizes_is_refused_in_one_short_line(tmp_path: Path) -> None:
    x, variables = clips(16), Variables(1)
    settings = {"from_posterior": False, "kl_weight": 0.0, "dna": False}
    reference.sv2p(variables, x, torch.zeros(2, 1, 2, 2), torch.ones(2, 3).bool(), **settings)
    archive(tmp_path, variables, SV2P | {"sequence_length": 5}, old=False)
    with pytest.raises(ValueError, match=r"in 1: generator/latent_conv1/weights gives") as error:
        load(tmp_path)
    assert len(str(error.value)) < 300
    del variables["generator/conv2/biases"]
    archive(tmp_path, variables, SV2P, old=False)
    with pytest.raises(ValueError, match=r"in 1: generator/conv2/biases is missing"):
        load(tmp_path)
