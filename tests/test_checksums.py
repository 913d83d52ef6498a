"""The checksums of a folder find whatever happens to one of its files, to the file of checksums too."""

import hashlib

import pytest

from common import checkpoint

FILES = {"a": b"some bytes", "below/b": bytes(range(20)), "below/below/c": b"\0", "empty": b""}


@pytest.fixture
def folder(tmp_path):
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    checkpoint.seal(tmp_path)
    assert checkpoint.intact(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", [*FILES, checkpoint.CHECKSUMS])
def test_every_change_of_a_file_is_found(folder, name):
    path = folder / name
    content = path.read_bytes()
    changed = [content + b"\0", content[:-1], b"", b"x" + content, content + content]
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        changed.append(bytes(flipped))
    for other in changed:
        path.write_bytes(other)
        assert checkpoint.intact(folder) == (other == content)
    path.unlink()
    assert not checkpoint.intact(folder)
    path.mkdir()
    assert not checkpoint.intact(folder)


@pytest.mark.parametrize("name", ["extra", "below/extra", f"below/{checkpoint.CHECKSUMS}"])
def test_a_file_too_many_is_found(folder, name):
    (folder / name).write_bytes(b"")
    assert not checkpoint.intact(folder)


def test_files_that_have_changed_places_are_found(folder):
    (folder / "a").write_bytes(FILES["below/b"])
    (folder / "below/b").write_bytes(FILES["a"])
    assert not checkpoint.intact(folder)


def test_nothing_holds_where_there_is_no_folder(tmp_path):
    assert not checkpoint.intact(tmp_path / "absent")


def test_the_file_is_what_sha256sum_reads(folder):
    """In each line the digest, two spaces, and the path: nothing but that of every file."""
    lines = (folder / checkpoint.CHECKSUMS).read_text().splitlines()
    assert sorted(lines) == sorted(f"{hashlib.sha256(content).hexdigest()}  {name}" for name, content in FILES.items())
