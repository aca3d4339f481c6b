"""BAIR robot pushing (small): a robot arm that pushes objects. RGB, 64x64, 30 frames a video.

From `bair_robot_pushing_dataset_v0.tar` or the TFRecord files in it to the sets of the paper: all
videos of `train` to train on, and the first frames of those of `test` to test on, from the camera
`image_aux1`. Frames are stored byte for byte, or resized (Lanczos) if they are to be of another
size, with `actions` (4 numbers) and `positions` of the end effector (3). TFRecords are read without
TensorFlow, and every checksum in them is verified. Videos are in the order of their files' names as
strings, as in the official code.
"""

import gzip
import re
import struct
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from srvp.data.config import DataConfig
from srvp.data.jobs import Job, Video
from srvp.data.prepared import train_validation_split
from srvp.data.raw import REPLACE, RawFile, intact, resized, tar_files
from srvp.data.staging import Fold, Staged, stage, write
from srvp.protobuf import fields, masked_crc

FRAMES = 30
SHAPE = (64, 64, 3)
VIDEOS = {"train": 43264, "test": 256}  # of the whole set
RECORDS = re.compile(r"(?:.*/)?(train|test)/([^/]+)\.tfrecords")
SOURCE = "http://rail.eecs.berkeley.edu/datasets/bair_robot_pushing_dataset_v0.tar"
GZIP_MAGIC = b"\x1f\x8b\x08"


def prepare(raw: Path, out: Path, config: DataConfig) -> None:
    """Write the set from the tar archive or `{train,test}/*.tfrecords`, at any depth in `raw`."""
    span = (config.test_frames - 1) * config.frame_step + 1
    if span > FRAMES:
        raise ValueError(
            f"a test clip spans {span} frames, but the videos of BAIR have {FRAMES}: lower "
            "data.test_frames or data.frame_step"
        )
    found = find_records(raw)
    jobs = [
        Job(fold, name, file.label, [file.path], partial(_read, name, file, config.size))
        for (fold, name), file in found.items()
    ]
    train, test = stage(raw, out, config, jobs, {file.path for file in found.values()})
    _, validation = train_validation_split(len(train.names), config.seed)
    clips = [(video, 0) for video in range(len(test.names))]
    write(
        config,
        (train, Fold(validation.tolist(), notes=_notes(train))),
        (test, Fold([], clips, config.test_frames, config.frame_step, _notes(test))),
    )


def _notes(staged: Staged) -> list[str]:
    fold, count = staged.folder.name, len(staged.names)
    if count == VIDEOS[fold]:
        return []
    return [f"{count} videos in {fold}, of {VIDEOS[fold]} in the whole set"]


def find_records(raw: Path) -> dict[tuple[str, str], RawFile]:
    """Return the record files by fold and name; one in an archive comes first."""
    found = {}
    for path in raw.rglob("*.tfrecords"):
        if match := RECORDS.fullmatch(path.as_posix()):
            found[match[1], match[2]] = RawFile(path, None, path.stat().st_size)
    for path in raw.rglob("*.tar"):
        for member in _members(path):
            if match := RECORDS.fullmatch(member.name):
                found[match[1], match[2]] = RawFile(path, member.name, member.size)
    for fold in VIDEOS:
        if all(fold != found_fold for found_fold, _ in found):
            raise FileNotFoundError(
                f"{raw} holds no {fold}/*.tfrecords: it needs bair_robot_pushing_dataset_v0.tar "
                f"from {SOURCE}, or the folder softmotion30_44k in it"
            )
    return dict(sorted(found.items()))


def _members(path: Path) -> list[tarfile.TarInfo]:
    """Return the files of an uncompressed tar archive, which must end as a whole one does."""
    with intact(path), tarfile.open(path, "r:") as tar:
        members = list(tar_files(path, tar))
        tar.fileobj.seek(-1024, 2)
        if any(tar.fileobj.read(1024)):
            raise EOFError("it lacks the two empty blocks at the end")
    return members


def _read(name: str, file: RawFile, size: int) -> Iterator[Video]:
    with file.open() as content:
        for number, record in enumerate(read_records(content, file.label), 1):
            frames, actions, positions = parse_video(record, f"record {number} of {file.label}")
            if size != frames.shape[-1]:
                frames = np.stack([resized(x.transpose(1, 2, 0), (size, size)) for x in frames])
            yield Video(
                f"{name}/{number:03d}", frames, {"actions": actions, "positions": positions}
            )


def read_records(file: BinaryIO, name: str) -> Iterator[bytes]:
    """Yield the records of a TFRecord file, plain or compressed by gzip.

    Args:
        file: open for reading, with `peek`.
        name: of the file, for messages.

    Raises:
        ValueError: a record is cut off or has a bad checksum.
        EOFError, gzip.BadGzipFile, zlib.error: the compressed file is damaged.
    """
    if file.peek(3)[:3] == GZIP_MAGIC:
        file = gzip.GzipFile(fileobj=file)
    number = 0
    while file.peek(1):
        number += 1
        where = f"record {number} of {name}"
        (length,) = struct.unpack("<Q", _read_checked(file, 8, where))
        yield _read_checked(file, length, where)


def _read_checked(file: BinaryIO, size: int, where: str) -> bytes:
    """Read `size` bytes and the masked CRC-32C that follows them."""
    data, checksum = file.read(size), file.read(4)
    if len(checksum) < 4:
        raise ValueError(f"{where} is cut off: {REPLACE}")
    if masked_crc(data) != struct.unpack("<I", checksum)[0]:
        raise ValueError(f"{where} has a bad checksum: {REPLACE}")
    return data


def parse_video(record: bytes, where: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return frames uint8 (30, 3, 64, 64), actions (30, 4) and positions (30, 3), float32.

    Raises:
        ValueError: the record, called `where` in the message, is no BAIR video.
    """
    try:
        features = _parse_example(record)
        frames = [_bytes(features[f"{t}/image_aux1/encoded"]) for t in range(FRAMES)]
        actions = [_floats(features[f"{t}/action"], 4) for t in range(FRAMES)]
        positions = [_floats(features[f"{t}/endeffector_pos"], 3) for t in range(FRAMES)]
        images = np.stack([np.frombuffer(frame, np.uint8).reshape(SHAPE) for frame in frames])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{where} is no BAIR video ({error}): {REPLACE}") from None
    return images.transpose(0, 3, 1, 2), np.stack(actions), np.stack(positions)


# tf.train.Example, a protocol-buffer message:
#   Example {1: Features {1: entries {1: key, 2: Feature}}}
#   Feature {1: BytesList {1: values}} or {2: FloatList {1: values, packed or not}}


def _parse_example(record: bytes) -> dict[str, memoryview]:
    """Return the features of an example by key."""
    features = {}
    for _, content in fields(memoryview(record)):
        for _, entry in fields(content):
            parts = dict(fields(entry))
            features[str(parts[1], "utf-8")] = parts[2]
    return features


def _bytes(feature: memoryview) -> memoryview:
    return dict(fields(dict(fields(feature))[1]))[1]


def _floats(feature: memoryview, count: int) -> np.ndarray:
    values = b"".join(value for _, value in fields(dict(fields(feature))[2]))
    return np.frombuffer(values, "<f4").reshape(count)
