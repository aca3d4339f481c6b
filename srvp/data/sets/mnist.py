"""The four MNIST files, checked against their published content."""

import gzip
import hashlib
import zlib
from pathlib import Path

import numpy as np

# SHA-256 of the uncompressed content: gzip files of the same digits differ between mirrors.
CHECKSUMS = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def load(folder: Path, fold: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the digits and labels of a fold of MNIST.

    Args:
        folder: where the gzip files `{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz` lie.
        fold: `"train"` (60,000 digits) or `"test"` (10,000 digits).

    Returns:
        Images, uint8 `(digits, 28, 28)`, and labels, uint8 `(digits,)`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is truncated, or its content is not that of MNIST.
    """
    prefix = {"train": "train", "test": "t10k"}[fold]
    images = _read(Path(folder), f"{prefix}-images-idx3-ubyte")[16:]  # header: magic and 3 sizes
    labels = _read(Path(folder), f"{prefix}-labels-idx1-ubyte")[8:]  # header: magic and 1 size
    return images.reshape(-1, 28, 28), labels


def _read(folder: Path, name: str) -> np.ndarray:
    path = folder / f"{name}.gz"
    expected = f"expected the MNIST file whose uncompressed content has SHA-256 {CHECKSUMS[name]}"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {expected}; fetch it with `dvc pull data.dvc`")
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}): {expected}; {_mend(path)}") from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != CHECKSUMS[name]:
        raise ValueError(f"{path} was altered (SHA-256 {digest}): {expected}; {_mend(path)}")
    return np.frombuffer(content, dtype=np.uint8)


def _mend(path: Path) -> str:
    return f"delete {path.name} and run `dvc checkout data.dvc`"
