"""Video files and pictures as people have them: every frame, as it looks, or one line."""

import io
import struct
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
import tifffile
import video_files
from PIL import Image
from video_files import FRAMES, HEIGHT, INPUTS, RATE, VIDEOS, WIDTH, Kind, video

from srvp.data.folders import RawVideo
from srvp.data.pictures import count_pictures, read_picture, read_pictures
from srvp.data.raw import DamagedError, count_frames, decode


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> dict[str, Path]:
    """A file of every kind, by name."""
    return {path.name: path for path in video_files.write_all(tmp_path_factory.mktemp("whole"))}


def frames_of(path: Path, **options) -> np.ndarray:
    return np.stack(list(decode(path, path.name, **options)))


def places(frames: np.ndarray) -> list[int]:
    """Return for each frame the number of the frame of `video` that is nearest."""
    distances = np.abs(frames[:, None].astype(int) - video()[None]).mean(axis=(2, 3, 4))
    return distances.argmin(axis=1).tolist()


# Whole files: all frames


@pytest.mark.parametrize("name", [*VIDEOS, *video_files.FILMS])
def test_whole_file_of_every_kind_gives_all_its_frames_in_order(written, name):
    frames = np.stack(list(RawVideo(name, "", (written[name],)).frames()))
    assert frames.dtype == np.uint8 and frames.shape == (FRAMES, HEIGHT, WIDTH, 3)
    assert places(frames) == list(range(FRAMES))


@pytest.mark.parametrize("name", [*VIDEOS, *video_files.FILMS])
def test_frames_at_another_rate_are_those_shown_at_these_times(written, name):
    frames = np.stack(list(RawVideo(name, "", (written[name],)).frames(rate=10)))
    found = places(frames)
    if name == "film.tif":  # tells no times
        assert found == list(range(FRAMES))
        return
    # 20 frames at 25 a second are 8 at 10 a second: every second or third. Where B-frames make the
    # first time stamp late, the filter starts there.
    assert abs(len(found) - 8) <= 1
    assert set(np.diff(found)) <= {2, 3} | ({1} if name == "h264.avi" else set())  # tells none


@pytest.mark.parametrize("name", VIDEOS)
def test_frames_are_counted_without_decoding(written, name):
    count, rate = count_frames(written[name], name)
    assert count == FRAMES
    assert rate is None or rate == pytest.approx(RATE)


@pytest.mark.parametrize(
    ("name", "frames"),
    [
        ("last_frame_held.gif", 20),
        ("last_frame_held.mp4", 20),
        ("dropped_frames.avi", 30),  # at 39 places: as many are shown at the file's rate
        ("sound_longer.mkv", 40),
        ("starts_late.mkv", 40),
        ("no_duration.webm", 40),
        ("index_first.mp4", 40),
    ],
)
def test_whole_file_whose_duration_is_not_that_of_its_frames(name, frames):
    assert len(frames_of(INPUTS / name)) == frames
    assert count_frames(INPUTS / name, name)[0] == frames


def test_held_and_dropped_frames_are_repeated_at_a_rate():
    assert len(frames_of(INPUTS / "dropped_frames.avi", rate=10)) == 39
    assert len(frames_of(INPUTS / "last_frame_held.mp4", rate=10)) == 49  # 1.9 s, then 3 s


def remux(source: Path, out: Path, change) -> Path:
    """Copy the packets of a video; `change` a packet, or return None to leave it out."""
    with av.open(source) as old, av.open(out, "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for number, packet in enumerate(p for p in old.demux(video=0) if p.size):
            if (changed := change(number, packet)) is not None:
                changed.stream = stream
                new.mux(changed)
    return out


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_frames_at_irregular_times(written, tmp_path, suffix):
    def hold(number, packet):  # screen recordings write a frame when something moves
        packet.pts = packet.dts = (number + number // 7 * 40) * 512
        packet.duration = 512
        return packet

    flat = video_files.write(tmp_path / "flat.mp4", Kind("mpeg4"))
    path = remux(flat, tmp_path / f"irregular{suffix}", hold)
    assert places(frames_of(path)) == list(range(FRAMES))


def test_video_that_an_edit_list_trims(written, tmp_path):
    """Phones trim a video by hiding its first frames, which are needed to decode the others."""

    def earlier(number, packet):
        packet.pts -= 5 * 512
        packet.dts -= 5 * 512
        return packet

    path = remux(written["h264.mp4"], tmp_path / "trimmed.mp4", earlier)
    assert places(frames_of(path)) == list(range(5, FRAMES))
    assert count_frames(path, path.name)[0] == FRAMES - 5


def test_broadcast_that_starts_between_key_frames(tmp_path):
    whole = video_files.write(tmp_path / "a.ts", Kind("libx264", codec_options={"g": "8"}))
    late = tmp_path / "late.ts"
    late.write_bytes(whole.read_bytes()[188 * 12 :])
    found = places(frames_of(late))
    assert 10 <= len(found) < FRAMES and found == list(range(FRAMES - len(found), FRAMES))


def test_metadata_of_another_encoding_do_not_matter(written):
    content = written["mpeg4.avi"].read_bytes().replace(b"Lavf", b"L\xe9vf")
    assert len(list(decode(io.BytesIO(content), "latin.avi"))) == FRAMES


def test_cover_of_a_piece_of_music_is_no_video(written, tmp_path):
    with av.open(INPUTS / "sound_only.mp4") as sound, av.open(tmp_path / "a.mp4", "w") as out:
        stream = out.add_stream_from_template(sound.streams.audio[0])
        cover = out.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        out.mux(cover.encode(av.VideoFrame.from_ndarray(video()[0])))
        out.mux(cover.encode(None))
        for packet in sound.demux(audio=0):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    for path in (tmp_path / "a.mp4", INPUTS / "sound_only.mp4"):
        with pytest.raises(DamagedError, match=rf"^{path.name} holds sound and no video"):
            next(decode(path, path.name))


def test_file_that_names_other_files_opens_none(written, tmp_path):
    path = tmp_path / "list.mp4"
    path.write_text(f"ffconcat version 1.0\nfile {written['h264.mp4']}\n")
    with pytest.raises(DamagedError, match="list.mp4"):
        next(decode(path, path.name))


# Cut files: refused


def cuts(content: bytes) -> list[int]:
    """Return where to cut a file: at 40 even distances, and within its last bytes."""
    return [len(content) * i // 40 for i in range(1, 40)] + [len(content) - n for n in (1, 2, 9)]


@pytest.mark.parametrize("name", [*VIDEOS, *video_files.FILMS])
def test_file_cut_anywhere_is_refused(written, tmp_path, name):
    """Where a container states no length, a cut between packets makes a shorter file, whole."""
    content = written[name].read_bytes()
    path = tmp_path / name
    for cut in cuts(content):
        path.write_bytes(content[:cut])
        try:
            frames = len(list(RawVideo(name, "", (path,)).frames()))
        except ValueError as error:
            assert str(error).startswith(name) and "\n" not in str(error)
            continue
        unnoticeable = {
            "mpeg2.ts": cut % 188 == 0,
            "sound.m2ts": cut % 192 == 0,
            "raw.y4m": content[cut:].startswith(b"FRAME"),
            "mjpeg.mjpeg": content[:cut].endswith(b"\xff\xd9"),
            "film.tif": frames == FRAMES,  # the last byte only fills up
        }
        assert unnoticeable.get(name), f"cut at {cut} of {len(content)}: {frames} frames"


@pytest.mark.parametrize("path", sorted(INPUTS.glob("*")), ids=lambda path: path.name)
def test_other_whole_files_are_refused_if_cut(path):
    content = path.read_bytes()
    for cut in cuts(content):
        with pytest.raises(DamagedError, match=f"^{path.name} "):
            list(decode(io.BytesIO(content[:cut]), path.name))


@pytest.mark.parametrize("name", ["mpeg4.avi", "h264.mkv", "live.webm", "sound.flv", "vp8.ogv"])
def test_download_that_did_not_complete_is_refused(written, name):
    """The disk space is there, filled with zeros."""
    content = written[name].read_bytes()
    for cut in cuts(content)[4:-4]:
        with pytest.raises(DamagedError, match=f"^{name} "):
            list(decode(io.BytesIO(content[:cut] + bytes(len(content) - cut)), name))


class Pipe(io.BytesIO):
    """A file in which nothing can be written afterwards, as live recordings are written."""

    seek = tell = None


LIVE = {
    "matroska": Kind("libx264"),
    "webm": Kind("libvpx", codec_options=video_files.FAST),
    "mp4": VIDEOS["fragments.mp4"],
    "flv": Kind("flv"),
    "avi": Kind("mpeg4"),
    "asf": Kind("wmv2"),
    "ogg": Kind("libvpx", codec_options=video_files.FAST),
}


@pytest.mark.parametrize("name", LIVE)
def test_live_recording_without_lengths_is_whole(name):
    kind, pipe = LIVE[name], Pipe()
    with av.open(pipe, "w", format=name, options=dict(kind.container_options)) as container:
        stream = container.add_stream(kind.codec, rate=RATE, options=dict(kind.codec_options))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, kind.pixels
        for frame in video():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode(None))
    content = pipe.getvalue()
    assert len(list(decode(io.BytesIO(content), name))) == FRAMES
    if name != "asf":  # tells nothing
        with pytest.raises(DamagedError, match=f"^{name} "):
            list(decode(io.BytesIO(content[:-5]), name))


@pytest.mark.parametrize(
    "junk", [b"junk" * 100, bytes(4096), b"\r\n"], ids=["text", "zeros", "line"]
)
@pytest.mark.parametrize(
    "name",
    ["h264.mp4", "index first.mp4", "h264.mov", "mpeg4.avi", "h264.mkv", "vp9.webm", "wmv2.wmv",
     "flv1.flv", "film.gif", "film.png"],
)  # fmt: skip
def test_what_follows_a_whole_container_does_not_matter(written, name, junk):
    content = written[name].read_bytes() + junk
    assert len(list(decode(io.BytesIO(content), name))) == FRAMES


def test_truncated_video_is_read_up_to_its_end_where_that_is_known(written):
    content = written["mpeg4.avi"].read_bytes()
    half = content[: (content.index(b"movi") + len(content)) // 2]
    assert 0 < len(list(decode(io.BytesIO(half), "", truncated=True))) < FRAMES


def test_empty_and_foreign_files_are_named(tmp_path):
    for name, content in {"a.mp4": b"", "b.avi": b"text", "c.gif": b"GIF89a"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DamagedError, match=f"^{name} is (damaged|truncated)"):
            list(decode(tmp_path / name, name))
    with pytest.raises(FileNotFoundError, match="missing.mp4"):
        next(decode(tmp_path / "missing.mp4", "missing.mp4"))


def test_picture_named_as_a_video_is_refused(written, tmp_path):
    for name in ("film.tif", "film.avif"):
        path = tmp_path / f"{name}.mp4"
        path.write_bytes(written[name].read_bytes())
        with pytest.raises(DamagedError, match=f"^{path.name} is a picture named as a video"):
            next(decode(path, path.name))


def test_time_stamps_that_jump_are_refused_where_frames_would_be_repeated(written, tmp_path):
    def late(number, packet):
        if number == 10:
            packet.pts += 10**6 * 512
            packet.dts += 10**6 * 512
        return packet if number <= 10 else None

    path = remux(written["h264.mp4"], tmp_path / "jump.mkv", late)
    assert len(frames_of(path)) == 11
    with pytest.raises(DamagedError, match=r"^jump\.mkv .* gap of more than 1800 seconds"):
        list(decode(path, path.name, rate=10))


# Frames as they look


MATRICES = {  # a, b, c, d: what they do to an image
    (1, 0, 0, 1): lambda x: x,
    (-1, 0, 0, 1): lambda x: x[:, ::-1],
    (1, 0, 0, -1): lambda x: x[::-1],
    (-1, 0, 0, -1): lambda x: x[::-1, ::-1],
    (0, 1, -1, 0): lambda x: np.rot90(x, -1),
    (0, -1, 1, 0): lambda x: np.rot90(x),
    (0, 1, 1, 0): lambda x: x.swapaxes(0, 1),
    (0, -1, -1, 0): lambda x: np.rot90(x, 2).swapaxes(0, 1),
}


@pytest.mark.parametrize("matrix", MATRICES)
def test_video_is_turned_and_mirrored_as_its_display_matrix_says(written, matrix):
    content = bytearray(written["h264.mp4"].read_bytes())
    at = content.index(b"tkhd") + 4 + 40  # in 16.16 fixed point
    a, b, c, d = (n << 16 for n in matrix)
    content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    plain = frames_of(written["h264.mp4"])[3]
    assert np.array_equal(list(decode(io.BytesIO(content), ""))[3], MATRICES[matrix](plain))
    scaled = list(decode(io.BytesIO(content), "", size=(30, 40)))[3]
    assert scaled.shape == (30, 40, 3)  # of the upright frame


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_pictures_of_a_video_may_have_an_exif_orientation(tmp_path, orientation):
    """Cameras that film in Motion JPEG note how they were held in every picture."""
    turn = {3: 2, 6: -1, 8: 1}[orientation]
    exif = Image.Exif()
    exif[0x112] = orientation
    content = io.BytesIO()
    for frame in video()[:5]:
        Image.fromarray(np.rot90(frame, -turn)).save(content, "jpeg", exif=exif, quality=95)
    (tmp_path / "a.mjpeg").write_bytes(content.getvalue())
    assert places(frames_of(tmp_path / "a.mjpeg")) == list(range(5))


def test_mirrored_video_looks_as_in_players():
    plain, mirrored = frames_of(INPUTS / "plain.mp4"), frames_of(INPUTS / "mirrored.mp4")
    assert np.array_equal(mirrored, plain[:, :, ::-1])


@pytest.mark.parametrize("from_the_top", [False, True])
def test_raw_avi_and_bmp_are_upright_whatever_the_order_of_their_rows(tmp_path, from_the_top):
    """A negative height in the header of a bitmap says that rows go from the top down."""
    image = video()[5]
    path = video_files.write(tmp_path / "a.avi", Kind("rawvideo", "bgr24"), image[None])
    content = bytearray(path.read_bytes())
    at = content.index(b"strf") + 8 + 8
    (height,) = struct.unpack("<i", content[at : at + 4])
    if (height < 0) != from_the_top:
        content[at : at + 4] = struct.pack("<i", -height)
        start = content.index(b"movi00dc") + 12
        rows = [content[start + i * WIDTH * 3 :][: WIDTH * 3] for i in range(HEIGHT)]
        content[start : start + HEIGHT * WIDTH * 3] = b"".join(reversed(rows))
    assert np.array_equal(next(decode(io.BytesIO(content), "")), image)
    rows = image[:, :, ::-1] if from_the_top else image[::-1, :, ::-1]
    header = struct.pack("<IiiHHIIiiII", 40, WIDTH, (-1) ** from_the_top * HEIGHT, 1, 24, *[0] * 6)
    bmp = b"BM" + struct.pack("<IHHI", 54 + rows.size, 0, 0, 54) + header + rows.tobytes()
    (tmp_path / "a.bmp").write_bytes(bmp)
    assert np.array_equal(read_picture(tmp_path / "a.bmp", "a.bmp"), image)


@pytest.mark.parametrize("name", ["a.mov", "a.gif", "a.webm", "a.png", "a.webp", "a.tif"])
def test_transparent_pixels_are_black_whatever_colour_they_hide(tmp_path, name):
    frames = np.concatenate([video(), np.full((FRAMES, HEIGHT, WIDTH, 1), 255, np.uint8)], axis=3)
    frames[:, 30:, :, :3], frames[:, 30:, :, 3] = (0, 255, 0), 0
    if name == "a.mov":
        path = video_files.write(tmp_path / name, Kind("png", "rgba"), frames)
    elif name == "a.webm":
        options = {**video_files.FAST, "auto-alt-ref": "0"}
        path = video_files.write(
            tmp_path / name, Kind("libvpx-vp9", "yuva420p", codec_options=options), frames
        )
    else:
        path = video_files.write_film(tmp_path / name, frames, duration=40)
    found = np.stack(list(RawVideo(name, "", (path,)).frames()))
    assert found.shape == (FRAMES, HEIGHT, WIDTH, 3)
    assert found[:, 32:].max() <= 8  # lossy
    assert places(np.where(np.arange(HEIGHT)[:, None, None] < 30, found, video())) == [*range(20)]


def test_pixels_that_are_not_square_are_widened_on_request(tmp_path):
    kind = Kind("libx264", codec_options={"x264-params": "sar=4/3"})
    path = video_files.write(tmp_path / "wide.mkv", kind)
    assert frames_of(path).shape[1:3] == (HEIGHT, WIDTH)
    assert frames_of(path, square=True).shape[1:3] == (HEIGHT, round(WIDTH * 4 / 3))


# Pictures


def save(path: Path, image: np.ndarray, **options) -> Path:
    Image.fromarray(image).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_picture_is_turned_as_its_exif_orientation_says(tmp_path, suffix, orientation):
    upright = video()[3]
    stored = {  # the picture as stored, for the viewer to turn: the inverse of the orientation
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.swapaxes(0, 1),
        6: lambda x: np.rot90(x),
        7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
        8: lambda x: np.rot90(x, -1),
    }[orientation](upright)
    exif = Image.Exif()
    exif[0x112] = orientation
    path = save(tmp_path / f"a.{suffix}", np.ascontiguousarray(stored), exif=exif)
    found = read_picture(path, path.name)
    assert found.shape == upright.shape
    assert np.abs(found.astype(int) - upright).mean() < (0.1 if suffix in ("png", "tif") else 8)


RAMP = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) * 21).astype(np.uint16)
RAMPS = np.stack([RAMP, RAMP // 2, RAMP // 4], axis=-1)


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def write_png(path: Path, samples: np.ndarray, colour: int, *extra: bytes) -> None:
    """Write a PNG of 16 bits."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, colour, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(rows))]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join([*chunks, chunk(b"IEND", b"")]))


DEEP = {
    "grey.png": lambda path: write_png(path, RAMP, 0),
    "rgb.png": lambda path: write_png(path, RAMPS, 2),
    "grey.tif": lambda path: tifffile.imwrite(path, RAMP),
    "big-endian.tif": lambda path: tifffile.imwrite(path, RAMP, byteorder=">"),
    "white is 0.tif": lambda path: tifffile.imwrite(path, 65535 - RAMP, photometric="miniswhite"),
    "rgb.tif": lambda path: tifffile.imwrite(path, RAMPS, photometric="rgb"),
    "bigtiff.tif": lambda path: tifffile.imwrite(path, RAMP, bigtiff=True),
    "float.tif": lambda path: tifffile.imwrite(path, (RAMP / 65535).astype(np.float32)),
    "grey.pgm": lambda path: path.write_bytes(b"P5 64 48 65535\n" + RAMP.astype(">u2").tobytes()),
    "ten bits.pgm": lambda path: path.write_bytes(
        b"P5 64 48 1023\n" + (RAMP // 64).astype(">u2").tobytes()
    ),
    "rgb.ppm": lambda path: path.write_bytes(b"P6 64 48 65535\n" + RAMPS.astype(">u2").tobytes()),
}


@pytest.mark.parametrize("name", DEEP)
def test_deep_picture_is_brought_to_eight_bits(tmp_path, name):
    DEEP[name](tmp_path / name)
    samples = RAMPS if "rgb" in name else np.repeat(RAMP[:, :, None], 3, axis=2)
    found = read_picture(tmp_path / name, name)
    assert np.abs(found - samples / 257).max() <= 1  # some are rounded, some cut off


def test_twelve_bits_fill_the_range(tmp_path):
    """Scientific cameras write TIFFs of 12 bits, two pixels in three bytes."""
    values = (RAMP >> 4).astype(np.uint32).reshape(-1, 2)
    packed = (values[:, 0] << 12 | values[:, 1]).astype(">u4").view(np.uint8).reshape(-1, 4)[:, 1:]
    data = packed.tobytes()
    tags = [(256, WIDTH), (257, HEIGHT), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1)]
    tags += [(278, HEIGHT), (279, len(data))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    header = struct.pack("<2sHI", b"II", 42, 8 + len(data))
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    (tmp_path / "a.tif").write_bytes(header + data + directory)
    found = read_picture(tmp_path / "a.tif", "a.tif")
    assert np.abs(found[:, :, 0] - RAMP / 257).max() <= 1


UNKNOWN_RANGE = {
    "holds signed integers": RAMP.astype(np.int16),
    "holds integers of 32 bits": RAMP.astype(np.uint32),
    "holds floating point from 0 to 64491; expected 0 to 1": RAMP.astype(np.float32),
    "of a kind that Pillow does not know": RAMP.astype(np.float64),
}


@pytest.mark.parametrize("reason", UNKNOWN_RANGE)
def test_picture_of_unknown_range_is_refused(tmp_path, reason):
    tifffile.imwrite(tmp_path / "a.tif", UNKNOWN_RANGE[reason])
    with pytest.raises(ValueError, match=f"^a.tif .*{reason}"):
        read_picture(tmp_path / "a.tif", "a.tif")


def test_colours_in_separate_planes(tmp_path):
    planes = np.ascontiguousarray(RAMPS.transpose(2, 0, 1))
    options = {"photometric": "rgb", "planarconfig": "separate"}
    tifffile.imwrite(tmp_path / "a.tif", (planes >> 8).astype(np.uint8), **options)
    assert np.array_equal(read_picture(tmp_path / "a.tif", ""), RAMPS >> 8)
    tifffile.imwrite(tmp_path / "a.tif", planes, **options)  # Pillow would read noise
    with pytest.raises(ValueError, match="planes of 16 bits"):
        read_picture(tmp_path / "a.tif", "a.tif")


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "PA", "RGBA", "CMYK", "YCbCr", "I;16", "F"])
def test_picture_of_any_mode_is_rgb(tmp_path, mode):
    image = Image.fromarray(video()[0])
    if mode in ("I;16", "F"):
        grey = np.asarray(image.convert("L")).astype(np.float32)
        image = Image.fromarray((grey * 257).astype(np.uint16) if mode == "I;16" else grey / 255)
        image = image.convert("F") if mode == "F" else image
    else:
        image = image.convert("RGB").convert(mode if mode != "PA" else "P").convert(mode)
    suffix = {"CMYK": "tif", "YCbCr": "jpg", "F": "tif", "PA": "tif"}.get(mode, "png")
    try:
        image.save(tmp_path / f"a.{suffix}")
    except OSError:
        pytest.skip(f"Pillow does not write {mode}")
    found = read_picture(tmp_path / f"a.{suffix}", "")
    assert found.shape == (HEIGHT, WIDTH, 3) and found.dtype == np.uint8
    square, ground = found[8:24, :16].mean(), found[30:].mean()
    assert square > 120 > 70 > ground


def test_palette_and_key_colours_may_be_transparent(tmp_path):
    image = Image.fromarray(video()[0]).quantize(16)
    key = np.asarray(image)[0, 0]
    image.save(tmp_path / "p.png", transparency=int(key))
    found = read_picture(tmp_path / "p.png", "")
    assert found[np.asarray(image) == key].max() == 0 < found.max()
    write_png(tmp_path / "g.png", RAMP, 0, chunk(b"tRNS", struct.pack(">H", int(RAMP[20, 20]))))
    found = read_picture(tmp_path / "g.png", "")
    assert found[20, 20, 0] == 0 < found[20, 19, 0]


def test_stack_over_more_than_time_is_refused(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif", np.zeros((5, 3, 8, 8), np.uint8), imagej=True, metadata={"axes": "TCYX"}
    )
    with pytest.raises(ValueError, match=r"^a.tif is a stack over more than time \(3 channels, 5"):
        list(read_pictures(tmp_path / "a.tif", "a.tif"))


def test_previews_are_no_pictures_of_a_stack(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for frame in video()[:3]:
            file.write(frame, photometric="rgb")
            file.write(np.ascontiguousarray(frame[::2, ::2]), photometric="rgb", subfiletype=1)
    assert count_pictures(tmp_path / "a.tif", "") == 3
    assert np.array_equal(list(read_pictures(tmp_path / "a.tif", "")), video()[:3])


def test_a_file_of_previews_alone_is_named(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(video()[0], photometric="rgb", subfiletype=1)
    with pytest.raises(ValueError, match=r"^a\.tif holds previews only"):
        list(read_pictures(tmp_path / "a.tif", "a.tif"))


def test_pictures_of_several_sizes_are_no_stack(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(video()[0], photometric="rgb")
        file.write(np.ascontiguousarray(video()[0][::2, ::2]), photometric="rgb")
    with pytest.raises(ValueError, match=r"^a\.tif holds pictures of several sizes"):
        list(read_pictures(tmp_path / "a.tif", "a.tif"))


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.bmp", "a.webp", "a.gif", "a.avif"])
def test_damaged_picture_is_named(tmp_path, name):
    path = save(tmp_path / name, video()[0])
    whole = path.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"^{name} is (damaged|truncated)") as error:
            read_picture(path, name)
        assert "\n" not in str(error.value)


def test_picture_that_claims_to_be_huge_is_refused_before_it_is_read(tmp_path):
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    with pytest.raises(ValueError, match=r"^a\.png .*(30000x30000|900000000) pixels"):
        read_picture(tmp_path / "a.png", "a.png")
    content = bytearray((INPUTS / "last_frame_held.gif").read_bytes())
    content[6:10] = struct.pack("<HH", 20_000, 20_000)
    with pytest.raises(DamagedError, match=r"^a\.gif is damaged"):
        list(decode(io.BytesIO(content), "a.gif"))


def test_damaged_exif_data_do_not_matter(tmp_path):
    path = save(tmp_path / "a.jpg", video()[0], exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert read_picture(path, "").shape == (HEIGHT, WIDTH, 3)
