"""Damaged files end in frames, or in one line that names the file."""

import json
import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
COUNT = int(os.environ.get("SRVP_FUZZ", "60"))  # files to damage and read


def test_damaged_files_end_in_frames_or_in_one_line(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
    command = [sys.executable, "fuzz.py", str(COUNT), "0", tmp_path / "work"]
    done = subprocess.run(command, cwd=TESTS, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == COUNT
    for result in results:
        assert result["megabytes"] < 2000, result
        if "error" in result:
            assert result["name"] in result["error"] and "\n" not in result["error"], result
        else:
            assert result["frames"] > 0, result
    refused = sum("error" in result for result in results)
    assert COUNT / 4 < refused < COUNT  # the damage is neither too small nor too large
