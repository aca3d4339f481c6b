"""Whether a video file was cut, from the lengths that its container declares.

Decoders stop without a word at the end of a cut file, and durations tell little: sound may be
longer than the pictures, a last frame may be held, a recording may start late. A container is a
sequence of elements that state their own length, so a cut file ends inside of one of them.

A file cut exactly between two elements is noticed only where the container has an end mark or
states its length (not in MPEG transport streams and live recordings: they may end anywhere).
"""

import io
import re
import struct
from collections.abc import Callable
from functools import partial
from typing import BinaryIO

Read = Callable[[int, int], bytes]  # of position and count; raises EOFError if there are fewer
Step = Callable[[Read, int], int | None]  # from an element to the next; None if it is none
WHOLE = -1  # instead of a next element: the file ends here, whatever follows


def is_cut(file: BinaryIO) -> bool | None:
    """Tell whether a video file lacks its end; None if its container does not tell.

    Args:
        file: open for reading; its position is changed.
    """
    size = file.seek(0, io.SEEK_END)

    def read(at: int, count: int) -> bytes:
        file.seek(min(at, size))
        found = file.read(count)
        if len(found) < count:
            raise EOFError
        return found

    file.seek(0)
    start = file.read(4096)
    for magic, check in _CONTAINERS.items():
        if re.match(magic, start, re.DOTALL):
            try:
                return check(read, size)
            except EOFError:
                return True
    return None


def _walk(
    read: Read, size: int, *, step: Step, start: int = 0, marked: bool = False
) -> bool | None:
    """Go from element to element; `marked` containers have a mark at their end."""
    at = start
    while at < size:
        after = step(read, at)
        if after == WHOLE:
            return False
        if after is None:  # zeros: the disk space of a download that did not complete
            return None if any(read(max(at, size - 16), min(16, size - at))) else True
        if after > size:
            return True
        at = after
    return marked


def _box(read: Read, at: int) -> int | None:
    """MP4, MOV, 3GP."""
    length, kind = struct.unpack(">I4s", read(at, 8))
    if kind not in _BOXES:
        return None
    if length == 1:
        (length,) = struct.unpack(">Q", read(at + 8, 8))
    return at + length if length >= 8 else WHOLE  # 0: up to the end


_BOXES = set(b"ftyp styp moov moof mdat free skip wide pnot uuid udta meta sidx mfra emsg".split())


def _chunk(read: Read, at: int) -> int | None:
    """AVI, WebP."""
    kind, length = struct.unpack("<4sI", read(at, 8))
    if not (kind.isascii() and kind.decode().isprintable()):
        return None
    if kind == b"RIFF" or (kind == b"LIST" and length in (0, 2**32 - 1)):  # not known when written
        return at + 12
    return at + 8 + length + length % 2


def _element(read: Read, at: int) -> int | None:
    """Matroska, WebM."""
    bits = 9 - read(at, 1)[0].bit_length()  # of identity and length, the first set bit counts bytes
    kind = read(at, bits)
    first = read(at + bits, 1)[0]
    if bits > 4 or not first:
        return None
    digits = 9 - first.bit_length()
    mask = (1 << 7 * digits) - 1
    length = int.from_bytes(read(at + bits, digits)) & mask
    body = at + bits + digits
    if length == mask:  # not known when it was written
        return body
    read(body + max(length, 1) - 1, 1)
    inside = kind in (b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75")  # the segment and its clusters
    return body if inside else body + length


def _object(read: Read, at: int) -> int | None:
    """WMV, ASF."""
    (length,) = struct.unpack("<Q", read(at + 16, 8))
    return at + length if length >= 24 else None


def _tag(read: Read, at: int) -> int | None:
    """FLV."""
    kind, *length = read(at, 4)
    return at + 15 + int.from_bytes(length) if kind & 31 in (8, 9, 18) else None


def _flv(read: Read, size: int) -> bool | None:
    stated = re.search(rb"filesize\0(.{8})", read(0, min(size, 4096)), re.DOTALL)
    if stated and struct.unpack(">d", stated[1])[0] > size:
        return True
    return _walk(read, size, step=_tag, start=13)


def _ogg(read: Read, size: int) -> bool:
    """Ogg: the last page is marked, and its frames do not end in zeros."""
    at = flags = 0
    while at < size:
        kind, _, flags, count = struct.unpack("<4sBB20xB", read(at, 27))
        if kind != b"OggS":
            return True
        at += 27 + count + sum(read(at + 27, count))
    return at > size or not flags & 4 or not any(read(size - 16, 16))


def _png_chunk(read: Read, at: int) -> int | None:
    length, kind = struct.unpack(">I4s4x", read(at, 12))
    if kind == b"IEND":
        return WHOLE
    return at + 12 + length if kind.isalpha() else None


def _pack(read: Read, at: int) -> int | None:
    """MPEG program streams."""
    prefix, kind = struct.unpack(">3sB", read(at, 4))
    if prefix != b"\0\0\1" or kind < 0xB9:
        return None
    if kind == 0xB9:
        return WHOLE
    if kind == 0xBA:
        return at + (14 + (read(at + 13, 1)[0] & 7) if read(at + 4, 1)[0] >> 6 == 1 else 12)
    return at + 6 + int.from_bytes(read(at + 4, 2))


def _gif_block(read: Read, at: int) -> int | None:
    kind = read(at, 1)
    if kind == b";":
        return WHOLE
    if kind == b"!":  # an extension
        at += 2
    elif kind == b",":  # a picture, with colours of its own or not
        at += 11 + _colours(read(at + 9, 1)[0])
    else:
        return None
    while length := read(at, 1)[0]:
        at += 1 + length
    return at + 1


def _gif(read: Read, size: int) -> bool | None:
    return _walk(read, size, step=_gif_block, start=13 + _colours(read(10, 1)[0]), marked=True)


def _colours(flags: int) -> int:
    """Return the bytes of a GIF's table of colours."""
    return 3 << (flags & 7) + 1 if flags & 128 else 0


def _transport(read: Read, size: int) -> bool | None:
    """MPEG transport streams: packets of one length, each with its mark."""
    for length, mark in ((188, 0), (192, 4), (204, 0)):
        if size > length and all(read(k * length + mark, 1) == b"G" for k in range(2)):
            return bool(size % length) or read(size - length + mark, 1) != b"G"
    return None


def _ends_with_picture(read: Read, size: int) -> bool:
    """Motion JPEG: every picture has an end mark."""
    tail = read(size - min(size, 4096), min(size, 4096))
    return not tail.rstrip(b"\0\r\n").endswith(b"\xff\xd9")


_CONTAINERS = {
    rb".{4}(ftyp|moov|mdat|wide|free|skip|pnot|styp)": partial(_walk, step=_box),
    rb"RIFF.{4}(AVI|WEBP)": partial(_walk, step=_chunk),
    rb"\x1a\x45\xdf\xa3": partial(_walk, step=_element),
    rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11": partial(_walk, step=_object),
    rb"FLV": _flv,
    rb"OggS": _ogg,
    rb"\x00\x00\x01\xba": partial(_walk, step=_pack),
    rb"GIF8": _gif,
    rb"\x89PNG": partial(_walk, step=_png_chunk, start=8, marked=True),
    rb"G|.{4}G": _transport,
    rb"\xff\xd8\xff": _ends_with_picture,
}
