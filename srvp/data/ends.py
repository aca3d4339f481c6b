"""Whether a video file was cut, from the lengths that its container declares.

Decoders stop without a word at the end of a cut file, and durations tell little: sound may be
longer than the pictures, a last frame may be held, a recording may start late. A container is a
sequence of elements that state their own length, so a cut file ends inside of one of them.

A cut exactly between two elements is noticed only if the container has an end mark or a stated
length. MPEG transport streams and live recordings have neither: they may end anywhere.
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
    read: Read,
    size: int,
    step: Step,
    start: int = 0,
    end: int | None = None,
    marked: bool = False,
) -> bool | None:
    """Go from element to element, and tell whether the file ends too early.

    Args:
        read, size: the file.
        step: from an element to the next.
        start: of the first element.
        end: of the container, as far as it tells; what follows does not matter.
        marked: the container has a mark at its end.
    """
    if end is not None and end > size:
        return True
    at = start
    while at < (size if end is None else end):
        after = step(read, at)
        if after == WHOLE:
            return False
        if after is None:
            return True if _ends_in_zeros(read, size, at) else None
        if after > size:
            return True
        at = after
    return marked


def _ends_in_zeros(read: Read, size: int, at: int) -> bool:
    """Tell whether zeros follow: the disk space of a download that did not complete."""
    count = min(16, size - at)
    return not any(read(size - count, count))


def _boxes(read: Read, size: int) -> bool | None:
    """MP4, MOV, 3GP. They have no end, so nothing may lack once index and frames are there."""
    at, seen = 0, set()
    while at < size:
        complete = {b"moov", b"mdat"} <= seen and b"moof" not in seen
        try:
            length, kind = struct.unpack(">I4s", read(at, 8))
            if length == 1:
                (length,) = struct.unpack(">Q", read(at + 8, 8))
        except EOFError:
            return not complete
        if kind not in _BOXES or 0 < length < 8:
            return True if _ends_in_zeros(read, size, at) and not complete else None
        if length == 0:  # up to the end of the file, wherever that is
            return None
        seen.add(kind)
        at += length
    return at > size


_BOXES = set(b"ftyp styp moov moof mdat free skip wide pnot uuid udta meta sidx mfra emsg".split())


def _riff(read: Read, size: int) -> bool | None:
    """AVI, WebP: a RIFF chunk, or several in a large AVI."""
    at, cut = 0, None
    while at + 12 <= size and read(at, 4) == b"RIFF":
        length, form = struct.unpack("<I4s", read(at + 4, 8))
        end = at + 8 + length
        if end > size and form == b"WEBP":
            return True
        # Old programs count wrong, so an AVI may state too much; its chunks tell more.
        known = length not in UNKNOWN and end <= size
        cut = _walk(read, size, _chunk, at + 12, end if known else None)
        if cut is not False:
            break
        at = end + end % 2 if known else size
    return cut


UNKNOWN = (0, 2**32 - 1)  # lengths in files that were written to a pipe


def _chunk(read: Read, at: int) -> int | None:
    kind, length = struct.unpack("<4sI", read(at, 8))
    if not (kind.isascii() and kind.decode().isprintable()):
        return None
    return at + 12 if kind == b"LIST" and length in UNKNOWN else at + 8 + length + length % 2


def _matroska(read: Read, size: int) -> bool | None:
    """Matroska, WebM: a header, then the segment."""
    _, start, length = _element_header(read, 0)
    kind, body, segment = _element_header(read, start + (length or 0))
    if not kind or length is None:
        return None
    return _walk(read, size, _element, body, None if segment is None else body + segment)


def _element(read: Read, at: int) -> int | None:
    kind, body, length = _element_header(read, at)
    if kind == b"\x1f\x43\xb6\x75" and length:  # a cluster, of frames
        read(body + length - 1, 1)
        return body
    return (body if length is None else body + length) if kind else None


def _element_header(read: Read, at: int) -> tuple[bytes, int, int | None]:
    """Return identity, start and length of an element; no identity if it is none.

    The first set bit of identity and length counts their bytes. A live recording has no lengths.
    """
    bits = 9 - read(at, 1)[0].bit_length()
    digits = 9 - read(at + bits, 1)[0].bit_length()
    if bits > 4 or digits > 8:
        return b"", at, 0
    mask = (1 << 7 * digits) - 1
    length = int.from_bytes(read(at + bits, digits)) & mask
    return read(at, bits), at + bits + digits, None if length == mask else length


def _asf(read: Read, size: int) -> bool | None:
    """WMV, ASF. The properties state the length, unless the file was written to a pipe."""
    at = read(0, min(size, 4096)).find(bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365"))
    if at < 0 or read(at + 88, 1)[0] & 1:
        return None
    (end,) = struct.unpack("<Q", read(at + 40, 8))
    return _walk(read, size, _object, 0, end or None)


def _object(read: Read, at: int) -> int | None:
    (length,) = struct.unpack("<Q", read(at + 16, 8))
    return at + length if length >= 24 else None


def _flv(read: Read, size: int) -> bool | None:
    stated = re.search(rb"filesize\0(.{8})", read(0, min(size, 4096)), re.DOTALL)
    (end,) = struct.unpack(">d", stated[1]) if stated else (0.0,)
    return _walk(read, size, _tag, 13, int(end) if 0 < end < 2**63 else None)


def _tag(read: Read, at: int) -> int | None:
    kind, *length = read(at, 4)
    return at + 15 + int.from_bytes(length) if kind & 31 in (8, 9, 18) else None


def _ogg(read: Read, size: int) -> bool:
    """Ogg: the last page is marked, and does not end in zeros."""
    at, last = 0, False
    while at < size:
        kind, _, flags, count = struct.unpack("<4sBB20xB", read(at, 27))
        if kind != b"OggS":
            break
        at += 27 + count + sum(read(at + 27, count))
        last = flags & 4 > 0 and (count > 0 or at == size)
    return at > size or not last or not any(read(at - 16, 16))


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
    rb".{4}(ftyp|moov|mdat|wide|free|skip|pnot|styp)": _boxes,
    rb"RIFF.{4}(AVI|WEBP)": _riff,
    rb"\x1a\x45\xdf\xa3": _matroska,
    rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11": _asf,
    rb"FLV": _flv,
    rb"OggS": _ogg,
    rb"\x00\x00\x01\xba": partial(_walk, step=_pack),
    rb"GIF8": _gif,
    rb"\x89PNG": partial(_walk, step=_png_chunk, start=8, marked=True),
    rb"G|.{4}G": _transport,
    rb"\xff\xd8\xff": _ends_with_picture,
}
