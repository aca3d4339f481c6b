"""Damage video files at random and read them: `python fuzz.py COUNT SEED FOLDER`.

Prints a line of JSON per file: what was done, and the frames or the error that came out. A file
that takes too long ends the process with the traceback of where it is.
"""

import faulthandler
import json
import random
import resource
import shutil
import sys
from pathlib import Path

import video_files

from srvp.data.folders import find_videos
from srvp.data.listing import listing
from srvp.data.raw import resized

SECONDS = 20  # most for one file
SUFFIXES = (".mp4", ".avi", ".mkv", ".gif", ".ts", ".png", ".tif", ".webp", ".jpg", ".bmp", ".y4m")


def damage(path: Path, chance: random.Random) -> str:
    """Cut, flip bits of, fill, swap, empty or rename a file in place; return what was done."""
    content = bytearray(path.read_bytes())
    at = chance.randrange(len(content))
    done = chance.choice(["cut", "bits", "bits", "head", "zeros", "insert", "swap", "empty"])
    if done == "cut":
        del content[at:]
    elif done in ("bits", "head"):  # all over the file, or where the sizes are
        for _ in range(chance.randint(1, 16)):
            end = len(content) if done == "bits" else min(len(content), 512)
            content[chance.randrange(end)] ^= 1 << chance.randrange(8)
    elif done == "zeros":
        content[at:] = bytes(len(content) - at)
    elif done == "insert":
        content[at:at] = chance.randbytes(chance.randint(1, 100))
    elif done == "swap":
        content = content[at:] + content[:at]
    else:
        content = bytearray()
    path.write_bytes(content)
    if chance.random() < 0.25:
        path.rename(path.with_suffix(chance.choice(SUFFIXES)))
        done += ", renamed"
    return done


def read(folder: Path, rate: float | None) -> dict:
    """List and read what is in a folder; return the number of frames or the error."""
    listing(folder)
    frames = 0
    for video in find_videos(folder):
        for frame in video.frames(rate):
            frames += resized(frame, (64, 64)).shape[1] // 64
    return {"frames": frames}


def main(count: int, seed: int, work: Path) -> None:
    """Damage and read `count` files."""
    sources = work / "whole"
    sources.mkdir(parents=True)
    files = [*video_files.write_all(sources), *sorted(video_files.INPUTS.iterdir())]
    chance = random.Random(seed)
    for number in range(count):
        source = files[number % len(files)]
        folder = work / str(number)
        folder.mkdir()
        done = damage(Path(shutil.copy(source, folder)), chance)
        (name,) = (path.name for path in folder.iterdir())
        rate = chance.choice([None, None, 10])
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        try:
            found = read(folder, rate)
        except (ValueError, OSError) as error:
            found = {"error": str(error)}
        faulthandler.cancel_dump_traceback_later()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        done = f"{source.name}: {done}"
        print(json.dumps({"name": name, "done": done, **found, "megabytes": peak}), flush=True)
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
