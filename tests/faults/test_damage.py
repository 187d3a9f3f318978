"""Trainings that find damaged files when they resume."""

import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from harness import MAX_ITER, check_equal, check_whole, load

NEWEST, OLDER = "model_0000003.pth", "model_0000001.pth"
whole = pytest.mark.whole


def rewrite(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Damage to the bytes of a file."""
    return lambda path: path.write_bytes(change(path.read_bytes()))


def without(*names: str) -> Callable[[Path], None]:
    """A checkpoint that lacks entries, at any depth."""

    def prune(content):
        if isinstance(content, dict):
            return {k: prune(v) for k, v in content.items() if k not in names}
        return content

    def damage(path: Path) -> None:
        content = load(path)
        kept = {k: v if k == "model" else prune(v) for k, v in content.items() if k not in names}
        torch.save(kept, path)

    return damage


def flip(share: float) -> Callable[[Path], None]:
    """One byte is another, in the middle of that one of the archive's records.

    Between records there is padding, which nobody reads.
    """

    def change(path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            records = [x for x in archive.infolist() if x.file_size]
        record, data = records[int(share * (len(records) - 1))], bytearray(path.read_bytes())
        # of a record's own header, whose name and extra field have lengths that it tells
        name, extra = struct.unpack_from("<HH", data, record.header_offset + 26)
        data[record.header_offset + 30 + name + extra + record.file_size // 2] ^= 0x10
        path.write_bytes(data)

    return change


def foreign(path: Path) -> None:
    """Weights alone, of another network."""
    torch.save({"model": {"weight": torch.zeros(3)}}, path)


DAMAGES = {
    "cut at the half": rewrite(lambda data: data[: len(data) // 2]),
    "cut after a byte": rewrite(lambda data: data[:1]),
    "without its last byte": rewrite(lambda data: data[:-1]),
    "empty": rewrite(lambda data: b""),
    "NUL": rewrite(lambda data: bytes(len(data))),
    "NUL at its end": rewrite(lambda data: data[:-4096] + bytes(4096)),
    "garbage": rewrite(lambda data: random.Random(0).randbytes(len(data))),
    "a text": rewrite(lambda data: b"no checkpoint\n"),
    "without its trainer's entry": without("trainer"),
    "without its optimizer": without("optimizer"),
    "without its iteration": without("iteration"),
    "without its model": without("model"),
    "of another network": foreign,
    **{f"one byte flipped at {share:.0%}": flip(share) for share in (0, 0.1, 0.3, 0.5, 0.7, 1)},
}


@pytest.mark.parametrize(
    "kind",
    [pytest.param(x, marks=[] if x == "one byte flipped at 50%" else whole) for x in DAMAGES],
)
def test_a_damaged_checkpoint_is_passed_over(experiment, tmp_path, kind):
    one = experiment("plain")
    folder = tmp_path / "run"
    one.killed(folder, 5)
    DAMAGES[kind](folder / NEWEST)
    command = one.resume(folder).succeed()
    command.mentions(NEWEST)
    check_equal(folder, one.reference, [command])


@whole
@pytest.mark.parametrize("kind", DAMAGES)
def test_without_a_whole_checkpoint_it_says_so(experiment, tmp_path, kind):
    one = experiment("plain")
    folder = tmp_path / "run"
    one.killed(folder, 5)
    for name in (NEWEST, OLDER):
        DAMAGES[kind](folder / name)
    before = (folder / NEWEST).read_bytes()
    one.resume(folder).refuse()
    assert (folder / NEWEST).read_bytes() == before


LAST = {
    "empty": b"",
    "half": NEWEST[:9].encode(),
    "binary": bytes(range(128, 255)),
    "NUL": bytes(17),
    "of an absent file": b"model_0000777.pth",
    "of a path elsewhere": b"../model_0000003.pth",
    "of a folder": b".",
    "of the older checkpoint": OLDER.encode(),
    "with an end of line": f"{NEWEST}\r\n".encode(),
    "long": b"x" * 5000,
}


@whole
@pytest.mark.parametrize("kind", LAST)
def test_a_damaged_last_checkpoint_does_not_matter(experiment, tmp_path, kind):
    one = experiment("plain")
    folder = tmp_path / "run"
    one.killed(folder, 5)
    (folder / "last_checkpoint").write_bytes(LAST[kind])
    command = one.resume(folder).succeed()
    check_equal(folder, one.reference, [command])


@whole
def test_an_absent_last_checkpoint_does_not_matter(experiment, tmp_path):
    one = experiment("dpk-workers")
    folder = tmp_path / "run"
    one.killed(folder, 5)
    (folder / "last_checkpoint").unlink()
    command = one.resume(folder).succeed()
    assert command.steps == [4, 5], "began anew"
    check_equal(folder, one.reference, [command])


@whole
def test_a_checkpoint_that_is_gone(experiment, tmp_path):
    one = experiment("dpk-workers")
    folder = tmp_path / "run"
    one.killed(folder, 5)
    (folder / NEWEST).unlink()
    command = one.resume(folder).succeed()
    check_equal(folder, one.reference, [command])


@whole
@pytest.mark.parametrize("kind", [x for x in DAMAGES if "cut" in x or x in ("empty", "NUL")])
@pytest.mark.parametrize("name", ["plain", "dpk"])  # the period divides the steps, or not
def test_a_resume_ends_with_a_whole_model_whatever_it_finds(experiment, tmp_path, name, kind):
    one = experiment(name)
    folder = tmp_path / "run"
    one.train(folder).succeed()
    DAMAGES[kind](folder / "model_final.pth")
    command = one.resume(folder).succeed()
    check_equal(folder, one.reference, [command])


@whole
@pytest.mark.parametrize("gone", ["model_final.pth", "results.json"])
def test_a_finished_run_that_lacks_a_file(experiment, tmp_path, gone):
    one = experiment("plain")
    folder = tmp_path / "run"
    one.train(folder).succeed()
    (folder / gone).unlink()
    command = one.resume(folder).succeed()
    check_equal(folder, one.reference, [command])


OTHERS = {
    "config.yaml": ["empty", "cut at the half", "NUL", "garbage"],
    "metrics.json": ["empty", "cut at the half", "NUL", "garbage"],
    "log.txt": ["empty", "garbage"],
}


@whole
@pytest.mark.parametrize("name, kind", [(n, k) for n, kinds in OTHERS.items() for k in kinds])
def test_other_damaged_files_of_a_run(experiment, tmp_path, name, kind):
    # they are written anew, or a sentence says what is wrong with them
    one = experiment("plain")
    folder = tmp_path / "run"
    one.killed(folder, 3)
    path = folder / name
    path.write_bytes(path.read_bytes() or b"{}\n")
    DAMAGES[kind](path)
    command = one.resume(folder)
    if command.wait():
        command.refuse(name)
    else:
        assert command.steps == list(range(2, MAX_ITER))
        (folder / name).unlink()
        check_whole(folder)
