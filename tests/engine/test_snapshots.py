"""What DPK's snapshots show is what the distiller did in that step."""

import numpy as np
import pytest
import torch

from dpk_det.distill.dpk.completion import HybridCompletion
from dpk_det.engine import snapshots
from dpk_det.engine.snapshots import colours, principal_axes


@pytest.fixture
def completions(monkeypatch):
    """What each call of a completion was given and gave, in order."""
    seen, forward = [], HybridCompletion.forward

    def spy(self, student, teacher, ratio, *others):
        out = forward(self, student, teacher, ratio, *others)
        seen.append((student, teacher, ratio, *out))
        return out

    monkeypatch.setattr(HybridCompletion, "forward", spy)
    return seen


def contents(folder):
    return {
        int(path.stem): dict(np.load(path)) for path in sorted((folder / "snapshots").iterdir())
    }


def test_three_steps_are_kept_with_the_masks_of_those_steps(tiny, tmp_path, command, completions):
    command("--config-file", tiny.dpk, "OUTPUT_DIR", tmp_path, "SOLVER.MAX_ITER", 8)
    found = contents(tmp_path)
    assert [*found] == [1, 4, 8]
    assert len(completions) == 8 * 3
    for step, content in found.items():
        of_step = completions[3 * (step - 1) : 3 * step]
        height, width = content["image"].shape[:2]
        for level, stride, seen in zip(("p2", "p3", "p4"), (4, 8, 16), of_step, strict=True):
            student, teacher, ratio, completed, given = seen
            assert content[f"{level}/ratio"] == np.float32(ratio)
            assert content[f"{level}/added"] >= 0
            assert content[f"{level}/token"] == 16  # pixels; what lies beside the image is cut off
            mask = given[0, : height // 16, : width // 16].numpy()
            assert np.array_equal(content[f"{level}/given"], mask)
            shape = (height // stride, width // stride)
            own = teacher[0, :, : shape[0], : shape[1]].detach()
            axes = principal_axes(own)
            for name, x in (("teacher", teacher), ("completed", completed), ("student", student)):
                cut = x[0, :, : shape[0], : shape[1]].detach().float()
                assert np.array_equal(content[f"{level}/{name}"], colours(cut, axes))
    assert found[1]["p2/ratio"] > 0


def test_a_training_is_the_same_without_them(tiny, tmp_path, command, monkeypatch):
    argv = ["--config-file", tiny.dpk, "SOLVER.MAX_ITER", 4, "OUTPUT_DIR"]
    command(*argv, tmp_path / "with")
    monkeypatch.setattr(snapshots, "_MOMENTS", ())
    command(*argv, tmp_path / "without")
    assert not (tmp_path / "without" / "snapshots").exists()
    one, other = (
        torch.load(tmp_path / name / "model_final.pth", weights_only=True)["model"]
        for name in ("with", "without")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_image_is_the_first_of_the_batch(tiny_images, tiny, tmp_path, command):
    command("--config-file", tiny_images.dpk, "OUTPUT_DIR", tmp_path, "INPUT.FORMAT", "RGB")
    content = contents(tmp_path)[3]
    assert content["image"].shape == (32, 32, 3)
    assert any(name.endswith("/given") for name in content)


def test_a_training_without_dpk_keeps_none(tiny, tmp_path, command):
    command("--config-file", tiny.plain, "OUTPUT_DIR", tmp_path)
    assert not (tmp_path / "snapshots").exists()


def test_axes_are_those_of_the_singular_values():
    x = torch.randn(6, 5, 7, generator=torch.Generator().manual_seed(0))
    x[0] *= 10  # standardised, a channel's scale does not count
    flat = x.flatten(1).double().numpy()
    flat = (flat - flat.mean(1, keepdims=True)) / flat.std(1, keepdims=True)
    vectors = np.linalg.svd(flat)[0][:, :3]
    axes = principal_axes(x).numpy()
    assert np.allclose(np.abs((vectors * axes).sum(0)), 1, atol=1e-4)
    shown = colours(x, torch.from_numpy(axes))
    along = axes.T @ flat
    expected = np.clip(along / along.std(1, keepdims=True) / 4 + 0.5, 0, 1) * 255
    assert np.abs(shown.reshape(-1, 3).T - expected).max() <= 0.51


def test_maps_of_few_channels_or_none_that_varies_have_colours():
    assert principal_axes(torch.randn(2, 3, 3)).shape == (2, 3)
    constant = torch.ones(4, 3, 3)
    assert (colours(constant, principal_axes(constant)) == 128).all()


def test_a_training_goes_on_where_a_snapshot_fails(tiny, tmp_path, command, monkeypatch, capsys):
    def fail(*arguments):
        raise RuntimeError("it did not converge")

    monkeypatch.setattr(snapshots, "colours", fail)
    command("--config-file", tiny.dpk, "OUTPUT_DIR", tmp_path)
    assert capsys.readouterr().out.count("(it did not converge); the training goes on") == 3
    assert (tmp_path / "results.json").exists() and not (tmp_path / "snapshots").exists()


def test_half_precision_does_no_harm(tiny, tmp_path, command, monkeypatch):
    forward = HybridCompletion.forward

    def half(self, student, *others):
        with torch.autocast("cpu", torch.bfloat16):
            return forward(self, student.bfloat16(), *others)

    monkeypatch.setattr(HybridCompletion, "forward", half)
    command("--config-file", tiny.dpk, "OUTPUT_DIR", tmp_path)
    assert [*contents(tmp_path)] == [1, 2, 3]


def test_after_dpk_has_stopped_there_is_nothing_to_keep(tiny, tmp_path, command):
    argv = ["--config-file", tiny.dpk, "SOLVER.MAX_ITER", 8, "DISTILL.STOP_AT", 0.5]
    command(*argv, "OUTPUT_DIR", tmp_path)
    assert [*contents(tmp_path)] == [1, 4]


def test_those_of_a_shorter_training_are_removed(tiny, tmp_path, command):
    argv = ["--config-file", tiny.dpk, "OUTPUT_DIR", tmp_path, "SOLVER.MAX_ITER"]
    command(*argv, 4)
    assert [*contents(tmp_path)] == [1, 2, 4]
    command("--resume", *argv, 8)
    assert [*contents(tmp_path)] == [1, 4, 8]
