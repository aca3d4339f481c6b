"""Kill commands at random moments and run them again: `python storm.py FOLDER --moments N`.

Each command of a small project of own videos (`prepare`, `train`, `evaluate`, `dvc repro`) runs
once undisturbed. Then it is killed with its process group (SIGKILL) at random moments of that
duration. After each kill the same command has to complete, and to leave the same files with the
same bytes.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import raw_archives
import yaml
from projects import ROOT, copy_pipeline

# By the command that is killed: what it is, and the folders of its results.
COMMANDS = {
    "prepare": (("srvp", "prepare", "tiny"), ("prepared",)),
    "train": (("srvp", "train", "tiny"), ("runs",)),
    "evaluate": (("srvp", "evaluate", "tiny"), ("runs",)),
    "repro": (("dvc", "repro"), ("prepared", "runs", "reports", "dvc.lock")),
}
# Where a run goes on from, and what tells the time at which it was made.
UNLIKE = ("checkpoint.pt", ".checksums.json", ".ipynb", "index.html")


def make_project(root: Path) -> None:
    """Write a copy of the repository with one experiment on a few videos."""
    for fold, count in {"train": 10, "validation": 2, "test": 4}.items():
        (root / "data" / "videos" / fold).mkdir(parents=True)
        for i in range(count):
            video = raw_archives.moving_square(40, 72, 96, seed=i)
            (root / "data" / "videos" / fold / f"{i}.mp4").write_bytes(raw_archives.mp4(video))
    tiny = yaml.safe_load((ROOT / "params.yaml").read_text())["experiments"]["tiny"]
    tiny["data"] |= {"dataset": "videos", "test_videos": 4, "test_frames": 20}
    tiny["training"] |= {"validation_frames": 15, "device": "cpu"}
    tiny["training"] |= {"constant_steps": 40, "decay_steps": 20}
    tiny["evaluation"] |= {"batch_size": 1}
    params = {"run": ["tiny"], "train": {"tiny": "srvp/models"}, "pretrained": []}
    (root / "params.yaml").write_text(yaml.safe_dump(params | {"experiments": {"tiny": tiny}}))
    copy_pipeline(root)


def start(command: tuple[str, ...], root: Path) -> subprocess.Popen:
    """Start a command in a process group of its own; what it says goes to a file."""
    environment = os.environ | {"PYTHONPATH": str(root), "SRVP_ROOT": str(root)}
    environment |= {"DVC_NO_ANALYTICS": "1", "OMP_NUM_THREADS": "1"}
    # DVC's stages call `python`.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with open(root / "said.txt", "ab") as said:
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=root, env=environment, stdout=said, stderr=said, start_new_session=True,
        )  # fmt: skip


def finish(command: tuple[str, ...], root: Path) -> float:
    """Run a command to its end; return how many seconds it took."""
    begin = time.monotonic()
    if start(command, root).wait():
        raise RuntimeError(f"{command} failed:\n{(root / 'said.txt').read_text()[-3000:]}")
    return time.monotonic() - begin


def kill_after(seconds: float, command: tuple[str, ...], root: Path) -> bool:
    """Start a command and kill it with its process group; return whether it was still running."""
    process = start(command, root)
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def results(root: Path, folders: tuple[str, ...]) -> dict[str, str]:
    """Return the SHA-256 of every file of the results that has to be the same."""
    files = [path for folder in folders for path in _files(root / folder)]
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(_content(path)).hexdigest()
        for path in files
        if not path.name.endswith(UNLIKE)
    }


def _files(path: Path) -> Iterator[Path]:
    return (p for p in sorted(path.rglob("*")) if p.is_file()) if path.is_dir() else iter([path])


def _content(path: Path) -> bytes:
    """Return what is in a file; in DVC's lock, the checksums of executed notebooks differ."""
    if path.name != "dvc.lock":
        return path.read_bytes()
    stages = yaml.safe_load(path.read_text())["stages"]
    for stage in stages.values():
        stage["outs"] = [out for out in stage["outs"] if not out["path"].endswith(UNLIKE)]
        # The report depends on the folder of all runs, with its executed notebooks.
        stage["deps"] = [dep for dep in stage["deps"] if dep["path"] != "runs"]
    return json.dumps(stages, sort_keys=True).encode()


def storm(name: str, work: Path, moments: int, kills: int, chance: random.Random) -> Iterator[dict]:
    """Kill a command at random moments; yield what came of each.

    Args:
        name: of the command, a key of `COMMANDS`.
        work: folder with the project before the command, `work/before`.
        moments: how often to begin and to complete the command.
        kills: how often to kill it each time, one run after the other.
        chance: draws the moments.
    """
    command, folders = COMMANDS[name]
    shutil.copytree(work / "before", work / "whole", symlinks=True)
    duration = finish(command, work / "whole")
    expected = results(work / "whole", folders)
    for number in range(moments):
        # The project gets the path that it had in the undisturbed run.
        (work / "whole").rename(work / "away")
        drawn: list[float] = []
        while len(drawn) < kills:
            if not drawn:
                shutil.copytree(work / "before", work / "whole", symlinks=True)
            moment = chance.uniform(0, duration)
            if kill_after(moment, command, work / "whole"):
                drawn.append(moment)
            else:  # it has ended before: from the start, with earlier moments
                shutil.rmtree(work / "whole")
                drawn, duration = [], moment
        finish(command, work / "whole")
        found = results(work / "whole", folders)
        differ = {n for n in found.keys() | expected.keys() if found.get(n) != expected.get(n)}
        yield {
            "command": name, "number": number, "duration": round(duration, 2),
            "moments": [round(moment, 2) for moment in drawn],
            "files": len(expected), "differ": sorted(differ),
        }  # fmt: skip
        shutil.rmtree(work / "whole")
        (work / "away").rename(work / "whole")


def main(work: Path, commands: list[str], moments: int, kills: int, seed: int) -> bool:
    """Storm each of the commands; return whether every one left what the undisturbed one does."""
    work.mkdir(parents=True)
    before = work / "before"
    make_project(before)
    finish(("dvc", "init", "--no-scm", "--quiet"), before)
    right = True
    for name in COMMANDS:
        if name == "repro":  # from the start
            for folder in ("prepared", "runs"):
                shutil.rmtree(before / folder, ignore_errors=True)
        if name in commands:
            for result in storm(name, work, moments, kills, random.Random(f"{seed} {name}")):
                print(json.dumps(result), flush=True)
                right = right and not result["differ"]
            shutil.rmtree(work / "whole")
        if name != "repro":
            finish(COMMANDS[name][0], before)
    return right


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="to work in; it must not exist")
    parser.add_argument("--moments", type=int, default=20, help="of each command (20)")
    parser.add_argument("--kills", type=int, default=1, help="in a row, at each moment (1)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    args = parser.parse_args()
    sys.exit(not main(args.folder, args.commands, args.moments, args.kills, args.seed))
