"""Checkpoints that are whole, and those that are found among damaged ones."""

import pytest
import torch
from torch import nn

from dpk_det.engine.resume.checkpoints import TrainingCheckpointer, last_checkpoint
from dpk_det.errors import UserError

NEWEST, OLDER = "model_0000003.pth", "model_0000001.pth"


class Trainer:
    def __init__(self, step):
        self.step = step

    def state_dict(self):
        kept = {"config": f"SEED: {self.step}\n"}
        inner = {"optimizer": {"state": {0: torch.rand(50)}, "param_groups": []}}
        return {"iteration": self.step - 1, "_trainer": inner, "hooks": {"Continuity": kept}}


@pytest.fixture
def folder(tmp_path):
    """What a training leaves that was killed after its checkpoints of steps 2 and 4."""
    for step in (2, 4):
        checkpointer = TrainingCheckpointer(nn.Linear(40, 40), tmp_path, trainer=Trainer(step))
        checkpointer.save(f"model_{step - 1:07d}")
    return tmp_path


def rewrite(change):
    return lambda path: path.write_bytes(change(path.read_bytes()))


def without(*keys):
    def damage(path):
        content = node = torch.load(path)
        for key in keys[:-1]:
            node = node[key]
        del node[keys[-1]]
        torch.save(content, path)

    return damage


def flip_a_weight(path):
    data = bytearray(path.read_bytes())
    weight = torch.load(path)["model"]["weight"].numpy().tobytes()
    data[data.index(weight[:64]) + 70] ^= 1
    path.write_bytes(data)
    torch.load(path)  # which torch takes without a word


DAMAGES = {
    "half": rewrite(lambda data: data[: len(data) // 2]),
    "one byte short": rewrite(lambda data: data[:-1]),
    "empty": rewrite(lambda data: b""),
    "NUL": rewrite(lambda data: bytes(len(data))),
    "NUL at the end": rewrite(lambda data: data[:-600] + bytes(600)),
    "text": rewrite(lambda data: b"no checkpoint\n"),
    "a flipped bit": flip_a_weight,
    "no trainer": without("trainer"),
    "no model": without("model"),
    "no step": without("trainer", "iteration"),
    "no optimizer": without("trainer", "_trainer", "optimizer"),
}


def test_the_last_one_is_found_with_its_step_and_config(folder):
    found = last_checkpoint(folder)
    assert (found.path, found.step, found.config) == (folder / NEWEST, 4, "SEED: 4\n")
    assert not found.skipped


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_one_is_skipped_and_said(folder, damage):
    damage(folder / NEWEST)
    found = last_checkpoint(folder)
    assert (found.path, found.step) == (folder / OLDER, 2)
    (line,) = found.skipped
    assert line.startswith(f"{folder / NEWEST} is skipped, because it")
    damage(folder / OLDER)
    with pytest.raises(UserError, match=f"No checkpoint in {folder} is whole") as error:
        last_checkpoint(folder)
    assert NEWEST in str(error.value) and OLDER in str(error.value)


@pytest.mark.parametrize(
    "content", [b"", b"model_00000", b"\xff\xfe\x00", b"model_0000009.pth", b"../x.pth", None]
)
def test_without_a_good_last_checkpoint_the_newest_one_counts(folder, content):
    if content is None:
        (folder / "last_checkpoint").unlink()
    else:
        (folder / "last_checkpoint").write_bytes(content)
    found = last_checkpoint(folder)
    assert found.step == 4
    (line,) = found.skipped
    assert "last_checkpoint" in line and "the newest whole checkpoint is taken" in line


def test_last_checkpoint_decides_also_for_an_older_one(folder):
    (folder / "last_checkpoint").write_text(OLDER)
    assert last_checkpoint(folder).step == 2


def test_the_newest_is_told_by_its_contents(folder):
    # MAX_ITER was raised after the final model of step 2
    (folder / OLDER).rename(folder / "model_final.pth")
    (folder / "last_checkpoint").unlink()
    assert last_checkpoint(folder).path.name == NEWEST


def test_of_one_step_the_final_model_is_taken(folder):
    TrainingCheckpointer(nn.Linear(4, 4), folder, trainer=Trainer(4)).save("model_final")
    (folder / "last_checkpoint").unlink()
    assert last_checkpoint(folder).path.name == "model_final.pth"


def test_weights_are_enough_to_evaluate(folder):
    without("trainer")(folder / NEWEST)
    assert last_checkpoint(folder, to_train=False).path.name == NEWEST


def test_a_folder_without_checkpoints(tmp_path):
    (tmp_path / "other.pth").write_bytes(b"")
    assert last_checkpoint(tmp_path) is last_checkpoint(tmp_path / "absent") is None


def test_a_checkpoint_takes_its_place_when_it_is_whole(folder, monkeypatch):
    before = {name: (folder / name).read_bytes() for name in (NEWEST, "last_checkpoint")}

    def half(content, file, **kwargs):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        TrainingCheckpointer(nn.Linear(4, 4), folder, trainer=Trainer(4)).save(NEWEST[:-4])
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert sorted(x.name for x in folder.iterdir()) == sorted([OLDER, *before])


def test_a_full_disk_is_said(folder):
    (folder / f".partial-{NEWEST}").symlink_to("/dev/full")  # what it writes to takes nothing
    checkpointer = TrainingCheckpointer(nn.Linear(400, 400), folder)
    with pytest.raises(UserError, match=rf"{NEWEST} could not be written \(No space left"):
        checkpointer.save(NEWEST[:-4])


def test_weights_of_another_model_are_refused(folder):
    checkpointer = TrainingCheckpointer(nn.Linear(40, 3), folder)
    with pytest.raises(UserError, match=r"of another model \(2 weights do not fit, weight, bias\)"):
        checkpointer.load(str(folder / NEWEST))
