"""Commands on a full disk: one sentence, no half file, and the last good checkpoint stays.

A limit on the size of files stands for the disk; where the tests may mount, a small one is full.
"""

import subprocess
from pathlib import Path

import pytest
from harness import check_equal, check_whole

whole = pytest.mark.whole
FIRST = 70_000  # less than a checkpoint, more than the log


@pytest.fixture
def disk(tmp_path):
    """``disk(kilobytes)`` mounts one of that size, or gives that one another size."""
    folder = tmp_path / "disk"

    def mount(kilobytes: int) -> Path:
        folder.mkdir(exist_ok=True)
        options = f"{'remount,' if folder.is_mount() else ''}size={kilobytes}k"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting needs root")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize(
    "name, step, kept",
    [
        pytest.param("plain", 1, [], marks=whole),
        ("plain", 3, ["model_0000001.pth"]),
        pytest.param("plain", 6, ["model_0000001.pth", "model_0000003.pth"], marks=whole),
        pytest.param("dpk-workers", 3, ["model_0000001.pth"], marks=whole),
    ],
)
def test_a_training_that_cannot_save(experiment, tmp_path, name, step, kept):
    one = experiment(name)
    folder = tmp_path / "run"
    first = one.train(folder, faults=[{"at": "step", "n": step, "do": f"full {FIRST}"}])
    first.refuse("model_")
    check_whole(folder)
    assert sorted(path.name for path in folder.glob("model_*.pth")) == kept
    first.left_behind()
    second = one.resume(folder).succeed()
    check_equal(folder, one.reference, [first, second])


@whole
@pytest.mark.parametrize("kilobytes", [4, 40, 150, 300, 450, 600, 750])
def test_a_training_on_a_small_disk(experiment, disk, kilobytes):
    one = experiment("plain")
    folder = disk(kilobytes)
    first = one.train(folder)
    first.refuse()
    check_whole(folder)
    disk(8000)
    second = one.resume(folder).succeed()
    check_equal(folder, one.reference, [first, second])


@whole
@pytest.mark.parametrize("how", ["limit", "disk"])
@pytest.mark.parametrize("suffix", ["pth", "ts", "onnx"])
def test_an_export(experiment, disk, tmp_path, suffix, how):
    one = experiment("plain")
    folder = disk(20) if how == "disk" else tmp_path / "export"
    folder.mkdir(exist_ok=True)
    argv = [*one.argv[:2], one.reference / "model_final.pth", folder / f"student.{suffix}"]
    faults = [{"at": "now", "do": "full 20000"}] if how == "limit" else []
    one.nursery.start(folder, argv, faults, "tools/export_student.py").refuse("student")
    left = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    assert left == [], left


@whole
@pytest.mark.parametrize("drawings", [False, True])
@pytest.mark.parametrize("how", ["limit", "disk"])
def test_predicting(experiment, tiny, disk, tmp_path, how, drawings):
    one = experiment("plain")
    folder = disk(4) if how == "disk" else tmp_path / "found"
    weights, images = one.reference / "model_final.pth", tiny.plain.with_name("images")
    argv = [*one.argv[:2], "--weights", weights, "--input", images, "--output", folder]
    argv += ["--threshold", "0", *([] if drawings else ["--no-drawings"])]
    faults = [{"at": "now", "do": "full 4000"}] if how == "limit" else []
    one.nursery.start(folder, argv, faults, "tools/predict.py").refuse()
    assert not (folder / "predictions.json").exists()
    for path in folder.rglob("*.png"):
        assert path.read_bytes().endswith(b"IEND\xaeB`\x82"), f"half file: {path.name}"
