"""What TensorFlow's files are made of: protocol-buffer messages and masked checksums."""

from collections.abc import Iterator

import google_crc32c


def fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield number and content of a message's fields: an integer, or bytes.

    Raises:
        ValueError: this is no message.
    """
    at = 0
    while at < len(message):
        tag, at = varint(message, at)
        kind = tag & 7
        if kind == 0:
            value, at = varint(message, at)
            yield tag >> 3, value
            continue
        if kind not in (1, 2, 5):
            raise ValueError(f"unexpected wire type {kind}")
        size = {1: 8, 5: 4}.get(kind)
        if size is None:
            size, at = varint(message, at)
        if at + size > len(message):
            raise ValueError("a field is cut off")
        yield tag >> 3, message[at : at + size]
        at += size


def varint(message: memoryview, at: int) -> tuple[int, int]:
    """Return the number that starts at a position, 7 bits a byte, and the position after it.

    Raises:
        ValueError: it is cut off.
    """
    number = shift = 0
    while at < len(message):
        byte = message[at]
        number |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return number, at
    raise ValueError("a number is cut off")


def masked_crc(data: bytes) -> int:
    """Return the CRC-32C of `data` as TensorFlow stores it: rotated, plus a constant."""
    crc = google_crc32c.value(bytes(data))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
