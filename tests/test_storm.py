"""A stage of the pipeline, killed four times in a row; `storm.py` kills every command."""

import random
import shutil

import storm

STAGE = ("dvc", "repro", "prepare@tiny")


def test_a_pipeline_that_is_killed_four_times_leaves_the_same_files(tmp_path):
    root = tmp_path / "project"
    storm.make_project(root)
    storm.finish(("dvc", "init", "--no-scm", "--quiet"), root)
    shutil.copytree(root, tmp_path / "before")
    duration = storm.finish(STAGE, root)
    folders = ("prepared", "dvc.lock")
    expected = storm.results(root, folders)
    assert len(expected) == 5  # two arrays, two manifests, the lock
    shutil.rmtree(root)
    (tmp_path / "before").rename(root)
    chance = random.Random(0)
    moments = [chance.uniform(0.1, 0.6) * duration for _ in range(4)]
    assert any([storm.kill_after(moment, STAGE, root) for moment in moments])
    storm.finish(STAGE, root)
    assert storm.results(root, folders) == expected
