"""Files that are either whole or absent: atomic writes, checksums, the repository's root."""

import glob
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT_VARIABLE = "SRVP_ROOT"


def project_root(start: Path | None = None) -> Path:
    """Return the folder of the project: the clone, with `params.yaml`, data and results.

    That is the folder that the environment variable SRVP_ROOT names; else the nearest folder at or
    above `start` (by default the current one) whose `params.yaml` has experiments; else the clone
    that the package is installed from. So notebooks, papermill, DVC and a program anywhere find the
    same data and results.

    Raises:
        FileNotFoundError: there is none.
    """
    if ROOT_VARIABLE in os.environ:
        folder = Path(os.environ[ROOT_VARIABLE]).resolve()
        if not _has_experiments(folder):
            raise FileNotFoundError(
                f"{ROOT_VARIABLE} is {folder}, which has no params.yaml with `experiments`: set it "
                "to a clone of the repository"
            )
        return folder
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents, Path(__file__).resolve().parents[1]):
        if _has_experiments(folder):
            return folder
    raise FileNotFoundError(
        f"no params.yaml with `experiments` in {start} or above it, and the package was not "
        f"installed from a clone: start inside a clone, or set {ROOT_VARIABLE} to one"
    )


def _has_experiments(folder: Path) -> bool:
    try:
        lines = (folder / "params.yaml").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return False
    return any(line.startswith("experiments:") for line in lines)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on failure.

    A reader, or a run resumed after a kill, never meets a half-written file. What a killed process
    left of the same file is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        os.replace(temporary, path)
        for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
            if not _is_running(left.name.split(".")[-2]):
                with suppress(OSError):  # it may be somebody else's
                    left.unlink()
    finally:
        temporary.unlink(missing_ok=True)


def _is_running(process: str) -> bool:
    """Tell whether there is a process of that number, or it cannot be known."""
    if os.name != "posix" or not process.isdecimal():
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to somebody else
        return True
    return True


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
