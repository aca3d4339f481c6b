"""The content of raw files, told without reading what has not changed."""

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from srvp.files import sha256, write_json


def checksums(files: Iterable[Path], record: Path) -> dict[Path, str]:
    """Return the SHA-256 of files. Only those are read that changed since they were recorded.

    A file whose size and times are those in the record has the content that it had. Where there is
    no record, as on another machine, every file is read once.

    Args:
        files: to tell the content of.
        record: JSON file of what was found before, which is brought up to date.
    """
    known = _load(record)
    stamps = {file: _stamp(file) for file in sorted(set(files))}
    changed = [
        file for file, stamp in stamps.items() if known.get(str(file.absolute()), [0])[0] != stamp
    ]
    if changed:
        with ThreadPoolExecutor() as pool:
            found = tqdm(pool.map(sha256, changed), "checksums of raw files", len(changed))
            for file, checksum in zip(changed, found, strict=True):
                known[str(file.absolute())] = [stamps[file], checksum]
        write_json(record, known)
    return {file: known[str(file.absolute())][1] for file in stamps}


def digest(value: object) -> str:
    """Return the SHA-256 of a value of JSON types."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _stamp(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _load(record: Path) -> dict[str, list]:
    try:
        return json.loads(record.read_text())
    except (OSError, ValueError):  # there is none, or it is damaged: then files are read again
        return {}
