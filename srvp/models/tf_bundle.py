"""TensorFlow checkpoints, read without TensorFlow.

A checkpoint is a bundle: `NAME.index`, a sorted table of the variables' types, shapes and places,
and shards `NAME.data-00000-of-00001`, which hold their bytes. The table has the format of LevelDB:
blocks of entries, whose keys leave out what they share with the key before, an index of the blocks
and a footer.
"""

import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from srvp.protobuf import fields, masked_crc, varint

MAGIC = 0xDB4775248B80FB57  # the last 8 bytes of a table
FOOTER = 48  # bytes
TRAILER = 5  # bytes after a block: how it is compressed, and its checksum
TYPES = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8"}  # of TensorFlow's enumeration of types


class Entry(NamedTuple):
    """Where a variable is stored."""

    type: str  # as NumPy names it
    shape: tuple[int, ...]
    shard: int
    offset: int  # in bytes
    size: int
    checksum: int


def read_checkpoint(
    folder: Path, wanted: Callable[[str], bool] = lambda name: True
) -> dict[str, np.ndarray]:
    """Return the variables of a checkpoint by name.

    Args:
        folder: that holds the checkpoint, the newest one if there are several; or its path without
            the ending `.index`.
        wanted: which variables to read, by name.

    Raises:
        FileNotFoundError: there is no checkpoint, or a shard is missing.
        ValueError: a file is damaged, or of a kind that is not read.
    """
    prefix = _prefix(Path(folder))
    index = prefix.with_name(f"{prefix.name}.index")
    try:
        shards, entries = _read_index(index.read_bytes())
    except (ValueError, KeyError, IndexError, struct.error) as error:
        raise ValueError(f"{index} is no index of a TensorFlow checkpoint: {error}") from None
    entries = {name: entry for name, entry in entries.items() if wanted(name)}
    variables = {}
    for shard in sorted({entry.shard for entry in entries.values()}):
        path = prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{shards:05d}")
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: put it beside {index.name}")
        with path.open("rb") as file:
            for name, entry in entries.items():
                if entry.shard == shard:
                    file.seek(entry.offset)
                    data = file.read(entry.size)
                    if len(data) < entry.size or masked_crc(data) != entry.checksum:
                        raise ValueError(f"{path} is damaged at {name}: fetch it again")
                    variables[name] = np.frombuffer(data, entry.type).reshape(entry.shape)
    return variables


def _prefix(path: Path) -> Path:
    """Return the path of a checkpoint without its endings."""
    if not path.is_dir():
        return path.with_suffix("") if path.suffix == ".index" else path
    listed = path / "checkpoint"
    if listed.is_file():
        newest = re.search(r'^model_checkpoint_path: "(.+)"', listed.read_text(), re.MULTILINE)
        if newest and (path / f"{Path(newest[1]).name}.index").is_file():
            return path / Path(newest[1]).name
    found = sorted(path.glob("*.index"), key=lambda p: (len(p.name), p.name))
    if not found:
        raise FileNotFoundError(f"{path} holds no checkpoint of TensorFlow (no file *.index)")
    return found[-1].with_suffix("")


def _read_index(table: bytes) -> tuple[int, dict[str, Entry]]:
    """Return the number of shards, and all variables by name."""
    if len(table) < FOOTER or struct.unpack("<Q", table[-8:])[0] != MAGIC:
        raise ValueError("its end is missing")
    view = memoryview(table)
    at = 0
    handles = []  # offset and size of two blocks: of names of other tables, and of the index
    for _ in range(4):
        number, at = varint(view[-FOOTER:], at)
        handles.append(number)
    shards, entries = 1, {}
    for _, handle in _block(view, handles[2], handles[3]):
        offset, at = varint(handle, 0)
        for key, value in _block(view, offset, varint(handle, at)[0]):
            if key:
                entries[key.decode()] = _entry(value)
            else:
                shards = _header(value)
    return shards, entries


def _block(table: memoryview, offset: int, size: int) -> Iterator[tuple[bytes, memoryview]]:
    """Yield keys and values of a block."""
    compression, checksum = struct.unpack("<BI", table[offset + size : offset + size + TRAILER])
    if masked_crc(table[offset : offset + size + 1]) != checksum:
        raise ValueError("a block has a wrong checksum")
    if compression:
        raise ValueError("it is compressed")
    block = table[offset : offset + size]
    restarts = struct.unpack("<I", block[-4:])[0]
    end, at, key = size - 4 * (restarts + 1), 0, b""
    while at < end:
        shared, at = varint(block, at)
        own, at = varint(block, at)
        length, at = varint(block, at)
        key = key[:shared] + bytes(block[at : at + own])
        yield key, block[at + own : at + own + length]
        at += own + length


def _header(message: memoryview) -> int:
    content = dict(fields(message))
    if content.get(2, 0):
        raise ValueError("its numbers are big-endian")
    return content.get(1, 1)


def _entry(message: memoryview) -> Entry:
    content = dict(fields(message))
    if 7 in content:
        raise ValueError("a variable is stored in slices")
    shape = [dict(fields(size)).get(1, 0) for key, size in fields(content.get(2, b"")) if key == 2]
    kind = TYPES.get(content[1])
    if kind is None:
        raise ValueError(f"type {content[1]} is unknown")
    checksum = struct.unpack("<I", content[6])[0]
    return Entry(
        kind, tuple(shape), content.get(3, 0), content.get(4, 0), content.get(5, 0), checksum
    )
