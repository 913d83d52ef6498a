"""Small runs of the classifier example, and a disk that dies."""

import os
from pathlib import Path

import numpy as np

import train_classifier as program
from common import lock as lock

SMALL = ("--classes", "3", "--batch-size", "100", "--epochs", "4", "--checkpoint-every", "2")


def run(output, *options, small=SMALL):
    return program.main([*small, "--output", str(output), *map(str, options)])


def contents(folder):
    """The files of a run, without its lock, which names the process."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != lock.NAME}


def arrays(path):
    with np.load(path) as file:
        return {name: file[name] for name in file if name != "settings"}


def the_one_line(capsys):
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


class Killed(BaseException):
    """In the place of SIGKILL: nothing in the program may catch it, or tidy up after it."""


def die_at_disk_operation(monkeypatch, number):
    """The program dies there: within a write, half of which has reached the disk, or before a rename."""
    left = [number]
    fsync, replace = os.fsync, Path.replace

    def dies():
        left[0] -= 1
        return left[0] < 0

    def dying_fsync(descriptor):
        if dies():
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            raise Killed
        fsync(descriptor)

    def dying_replace(path, target):
        if dies():
            raise Killed
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", dying_fsync)
    monkeypatch.setattr(Path, "replace", dying_replace)
