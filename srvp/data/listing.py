"""A listing of your own videos: what is taken, for which fold, what is left out, and why."""

from pathlib import Path

from srvp.data.folders import FOLDS, RawVideo, meant_fold, search
from srvp.data.pictures import count_pictures
from srvp.data.raw import REPLACE, count_frames

LINES = 20  # most lines that give the same reason


def listing(folder: Path, **split: float) -> str:
    """Return a table of what a folder holds: a line for each video and each file left out.

    Of each video only the first frame is decoded. One that cannot be read has a line that says why.

    Args:
        folder: to search.
        split: see `srvp.data.folders.fold_of`.

    Raises:
        FileNotFoundError: there is no video.
    """
    videos, left_out = search(folder, **split)
    lines = [f"{'video':40} {'fold':10} {'frames':>7} {'size':>9} {'rate':>6} {'seconds':>8}"]
    damaged = 0
    for video in videos:
        try:
            told = _facts(video)
        except (OSError, ValueError) as error:
            damaged += 1
            reason = getattr(error, "strerror", None) or str(error).removesuffix(f": {REPLACE}")
            told = f"cannot be read: it {reason.removeprefix(f'{video.name} ')}"
        lines.append(f"{video.name:40} {video.fold:10} {told}")
    for reason in dict.fromkeys(left_out.values()):
        names = [name for name, why in left_out.items() if why == reason]
        lines += [f"{name:40} left out: {reason}" for name in names[:LINES]]
        if len(names) > LINES:
            lines.append(f"{len(names) - LINES} more are left out: {reason}")
    counts = ", ".join(f"{sum(video.fold == fold for video in videos)} {fold}" for fold in FOLDS)
    unread = f"; {damaged} cannot be read" if damaged else ""
    return "\n".join([*lines, *_meant(videos), f"{len(videos)} videos: {counts}{unread}"])


def _facts(video: RawVideo) -> str:
    """Return number of frames, size, rate and length of a video."""
    height, width = next(iter(video.frames())).shape[:2]
    rate = None
    if video.is_frames:
        count = len(video.files)
    elif video.is_film:
        count = count_pictures(video.files[0], video.name)
    else:
        count, rate = count_frames(video.files[0], video.name)
    told = f"{count:7} {f'{width}x{height}':>9}"
    return f"{told} {rate:6.4g} {count / rate:8.1f}" if rate else told


def _meant(videos: list[RawVideo]) -> list[str]:
    """Return a line that says which folders were taken for folds."""
    folders = {part: meant_fold(part) for video in videos for part in video.name.split("/")}
    meant = [f"{folder}/ for {fold}" for folder, fold in sorted(folders.items()) if fold]
    return [f"folders: {', '.join(meant)}"] if meant else []
