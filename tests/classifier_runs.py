"""Small runs of `train_classifier.py`, and a kill at a disk operation."""

import json
import os
from pathlib import Path

import numpy as np
from endings import Killed

import train_classifier as program
from common.runs import LOCK, Run
from common.settings import decisive, parse

SMALL = ("--classes", "3", "--batch-size", "100", "--epochs", "4", "--checkpoint-every", "2")


def run(output, *options, small=SMALL):
    return program.main([*small, "--output", str(output), *map(str, options)])


def contents(folder):
    """The files of a run without the lock, which names the process."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != LOCK)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def results(folder):
    return {name: content for name, content in contents(folder).items() if name in program.RESULTS}


def arrays(path):
    with np.load(path) as file:
        return dict(file)


def last_state(folder):
    """The state in the last checkpoint of a finished run."""
    settings = json.loads((folder / "metrics.json").read_text())["settings"]
    words = [f"--{key.replace('_', '-')}={value}" for key, value in settings.items()]
    config = parse(program.Options, words, program.DEFAULT_CONFIG).settings
    return Run(folder, decisive(config)).restore(program.initial_state(program.load_data(config), config))


def die_at_disk_operation(monkeypatch, number):
    """Kills the program at this operation: in a write, when half of it is on the disk, or before a rename."""
    left = [number]
    fsync, replace, rename = os.fsync, Path.replace, Path.rename

    def dies():
        left[0] -= 1
        return left[0] < 0

    def dying_fsync(descriptor):
        if dies():
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            raise Killed
        fsync(descriptor)

    def dying(move):
        def moved(path, target):
            if dies():
                raise Killed
            return move(path, target)

        return moved

    monkeypatch.setattr(os, "fsync", dying_fsync)
    monkeypatch.setattr(Path, "replace", dying(replace))
    monkeypatch.setattr(Path, "rename", dying(rename))
