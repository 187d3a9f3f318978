"""Predicting, against Detectron2's own evaluation, its models asked by hand, and pycocotools."""

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import build_model
from PIL import Image
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

from dpk_det.architectures import plain_architecture
from dpk_det.checkpoint.loading import load_weights_strictly
from dpk_det.data import build_image_test_loader
from dpk_det.deploy.inputs import find_inputs
from dpk_det.deploy.predict import predict, run
from dpk_det.errors import UserError


@pytest.fixture
def images(tiny):
    return tiny.plain.parent / "images"


@pytest.fixture
def found(tmp_path):
    """``found(cfg, weights, inputs, ...)`` predicts and returns what is in the JSON file."""

    def call(cfg, weights, inputs, **options):
        predict(cfg, str(weights), find_inputs(map(str, inputs)), tmp_path / "out", **options)
        return json.loads((tmp_path / "out" / "predictions.json").read_text())

    return call


def by_hand(model, cfg, path):
    """What a model finds in an image that is read and resized as for an evaluation."""
    image = read_image(str(path), cfg.INPUT.FORMAT)
    resize = ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
    resized = resize.get_transform(image).apply_image(image).astype("float32").transpose(2, 0, 1)
    size = {"height": image.shape[0], "width": image.shape[1]}
    with torch.no_grad():
        return model([{"image": torch.from_numpy(resized), **size}])[0]["instances"]


def of_image(content, name):
    (image,) = [x for x in content["images"] if x["file_name"] == name]
    return [x for x in content["annotations"] if x["image_id"] == image["id"]]


# ------------------------------------------------------------------ what is found


def test_it_finds_what_the_evaluation_finds(tiny, trained, images, found, tmp_path):
    cfg = tiny.cfg("dpk", "DISTILL.TEACHER.CONFIG_FILE", "gone.yaml")  # needs no teacher
    content = found(cfg, trained / "model_final.pth", [images], threshold=0.0, drawings=False)
    names = {x["id"]: x["file_name"] for x in content["images"]}
    theirs = json.loads((trained / "inference" / "coco_instances_results.json").read_text())
    assert sorted(names.values()) == [f"{i}.png" for i in range(8)]
    assert [(x["height"], x["width"]) for x in content["images"]] == [(64, 64), (64, 96)] * 4
    for i in range(8):
        ours = of_image(content, f"{i}.png")
        expected = [x for x in theirs if x["image_id"] == i]
        assert len(ours) == len(expected) > 0
        for a, b in zip(ours, expected, strict=True):
            assert a["category_id"] == b["category_id"]
            assert a["score"] == pytest.approx(b["score"], abs=1e-5)
            assert a["bbox"] == pytest.approx(b["bbox"], abs=1e-3)
    assert not (tmp_path / "out" / "drawings").exists()


def test_the_file_is_a_coco_dataset_and_its_annotations_are_results(
    tiny, trained, images, found, tmp_path, capsys
):
    content = found(tiny.cfg("plain"), trained / "model_final.pth", [images], threshold=0.0)
    coco = COCO(str(tmp_path / "out" / "predictions.json"))
    assert [x["name"] for x in coco.loadCats(coco.getCatIds())] == ["square", "disc"]
    assert len(coco.getImgIds()) == 8
    ids = [x["id"] for x in content["annotations"]]
    assert sorted(coco.getAnnIds()) == ids == list(range(1, len(ids) + 1))
    results = coco.loadRes([dict(x) for x in content["annotations"]])
    assert len(results.getAnnIds()) == len(ids)
    assert all(x["area"] == x["bbox"][2] * x["bbox"][3] for x in content["annotations"])


def test_only_scores_from_the_threshold_count(tiny, trained, images, found):
    cfg, weights = tiny.cfg("plain"), trained / "model_final.pth"
    everything = found(cfg, weights, [images], threshold=0.0, drawings=False)["annotations"]
    scores = sorted(x["score"] for x in everything)
    limit = scores[len(scores) // 2]
    kept = found(cfg, weights, [images], threshold=limit, drawings=False)["annotations"]
    assert 0 < len(kept) < len(everything)
    assert [x["score"] for x in kept] == [x["score"] for x in everything if x["score"] >= limit]


def test_masks_and_keypoints_are_written(tiny, variant, images, found):
    path = images / "1.png"
    model, opts, weights = variant("mask")
    cfg = tiny.cfg("plain", *opts)
    ours = of_image(found(cfg, weights, [path], threshold=0.0), "1.png")
    expected = by_hand(model, cfg, path)
    assert len(ours) == len(expected) > 0
    for x, mask in zip(ours, expected.pred_masks.numpy(), strict=True):
        assert np.array_equal(mask_util.decode(x["segmentation"]), mask)
        assert x["area"] == mask.sum()

    model, opts, weights = variant("keypoint")
    cfg = tiny.cfg("plain", *opts)
    ours = of_image(found(cfg, weights, [path], threshold=0.0), "1.png")
    expected = by_hand(model, cfg, path).pred_keypoints.numpy()
    assert len(ours) == len(expected) > 0
    expected[..., :2] -= 0.5  # COCO's keypoints are pixels, Detectron2's are points in them
    found_points = np.array([x["keypoints"] for x in ours]).reshape(expected.shape)
    np.testing.assert_allclose(found_points, expected, atol=1e-3)


def test_an_image_is_turned_as_its_exif_tag_says(tiny, trained, images, found, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stands upright when turned by 90 degrees
    Image.open(images / "1.png").save(tmp_path / "turned.png", exif=exif)
    weights = trained / "model_final.pth"
    content = found(tiny.cfg("plain"), weights, [tmp_path / "turned.png"], threshold=0.0)
    (image,) = content["images"]
    assert (image["height"], image["width"]) == (96, 64)
    drawn = cv2.imread(str(tmp_path / "out" / "drawings" / "turned.png"), cv2.IMREAD_COLOR)
    assert drawn.shape == (96, 64, 3)


def test_without_a_dataset_classes_are_numbers(tiny, trained, images, found):
    cfg = tiny.cfg("plain", "DATASETS.TEST", "()")
    content = found(cfg, trained / "model_final.pth", [images / "0.png"], threshold=0.0)
    assert content["categories"] == [{"id": 0, "name": "0"}, {"id": 1, "name": "1"}]
    assert {x["category_id"] for x in content["annotations"]} <= {0, 1}


# ------------------------------------------------------------------ drawings


def test_drawings_have_the_inputs_names_and_sizes(tiny, trained, images, found, tmp_path):
    for name, source in (("a/x.png", "0.png"), ("b/x.png", "1.png"), ("b/y.jpg", "2.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), cv2.imread(str(images / source)))
    inputs = [tmp_path / "a", tmp_path / "b"]
    cfg, weights = tiny.cfg("plain"), trained / "model_final.pth"
    content = found(cfg, weights, inputs, threshold=0.0, drawings=False)
    assert [x["file_name"] for x in content["images"]] == ["a/x.png", "b/x.png", "b/y.jpg"]
    names = [x["file_name"] for x in content["images"]]
    limit = min(max(x["score"] for x in of_image(content, name)) for name in names)
    found(cfg, weights, inputs, threshold=limit)
    for name in ("a/x.png", "b/x.png", "b/y.jpg"):
        image, drawn = (cv2.imread(str(x / name)) for x in (tmp_path, tmp_path / "out/drawings"))
        assert drawn.shape == image.shape
        # drawn over in places; the rest is the image, its channels in their places
        assert 0.1 < (drawn == image).all(2).mean() < 0.98 or name.endswith("jpg")


def test_two_checkpoints_are_drawn_side_by_side(tiny, trained, images, tmp_path):
    cfg, other = tiny.cfg("dpk"), tmp_path / "other.pth"
    torch.save({"model": tiny.build("plain", seed=5).state_dict()}, other)
    weights = {"one": str(trained / "model_final.pth"), "two": str(other)}
    files = find_inputs([str(images / "1.png")])
    for name, path in weights.items():
        predict(cfg, path, files, tmp_path / name, threshold=0.3)
    predict(cfg, weights["one"], files, tmp_path / "both", threshold=0.3, beside=weights["two"])
    one, two, both = (
        cv2.imread(str(tmp_path / name / "drawings" / "1.png")) for name in ("one", "two", "both")
    )
    assert not np.array_equal(one, two)
    # colours of boxes are drawn by lot
    assert both.shape == (64, 192, 3)
    plain = cv2.imread(str(images / "1.png"))
    for half, alone in ((both[:, :96], one), (both[:, 96:], two)):
        drawn = (half != plain).any(2), (alone != plain).any(2)
        assert (drawn[0] == drawn[1]).mean() > 0.9
    assert not np.array_equal(both[:, :96], both[:, 96:])
    found = (json.loads((tmp_path / name / "predictions.json").read_text()) for name in weights)
    assert json.loads((tmp_path / "both" / "predictions.json").read_text()) == next(found)


def test_beside_is_for_drawings(tiny, trained, images, tmp_path):
    weights = str(trained / "model_final.pth")
    with pytest.raises(UserError, match="--beside is for drawings"):
        predict(
            tiny.cfg("dpk"),
            weights,
            find_inputs([str(images)]),
            tmp_path / "out",
            drawings=False,
            beside=weights,
        )


def test_an_image_without_detections_is_drawn_as_it_is(tiny, trained, images, found, tmp_path):
    weights = trained / "model_final.pth"
    content = found(tiny.cfg("plain"), weights, [images / "0.png"], threshold=1.0)
    assert content["annotations"] == []
    drawn = cv2.imread(str(tmp_path / "out" / "drawings" / "0.png"))
    assert np.array_equal(drawn, cv2.imread(str(images / "0.png")))


def test_a_video_gives_a_video_and_a_list_of_frames(tiny, trained, images, found, tmp_path):
    clip = tmp_path / "clip.mp4"
    write_video(clip, images, (1, 3, 5))
    cfg, weights = tiny.cfg("plain"), trained / "model_final.pth"
    content = found(cfg, weights, [clip, images / "0.png"], threshold=0.0)
    names = [(Path(x["file_name"]).name, x.get("frame")) for x in content["images"]]
    assert names == [("clip.mp4", 0), ("clip.mp4", 1), ("clip.mp4", 2), ("0.png", None)]

    frames, drawn = read_video(clip), read_video(next(tmp_path.glob("out/drawings/**/clip.mp4")))
    assert len(frames) == len(drawn) == 3
    assert drawn[0].shape == frames[0].shape == (64, 96, 3)
    cv2.imwrite(str(tmp_path / "frame.png"), frames[1])
    alone = found(cfg, weights, [tmp_path / "frame.png"], threshold=0.0)["annotations"]
    of_frame = [x for x in content["annotations"] if x["image_id"] == 2]
    assert len(of_frame) == len(alone) > 0
    assert all(a["bbox"] == b["bbox"] for a, b in zip(of_frame, alone, strict=True))
    capture = cv2.VideoCapture(str(next(tmp_path.glob("out/drawings/**/clip.mp4"))))
    assert capture.get(cv2.CAP_PROP_FPS) == 12


def write_video(path, images, numbers, codec="mp4v"):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 12.0, (96, 64))
    for i in numbers:
        writer.write(cv2.imread(str(images / f"{i}.png")))
    writer.release()


def read_video(path):
    capture, frames = cv2.VideoCapture(str(path)), []
    while True:
        there, frame = capture.read()
        if not there:
            return frames
        frames.append(frame)


def test_segments_are_drawn_where_they_have_names(tiny, variant, images, found, tmp_path):
    _, opts, weights = variant("panoptic")
    opts += ["MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", "0"]
    cfg = tiny.cfg("plain", *opts)
    DatasetCatalog.get("tiny")
    drawn = {}
    before = dict(MetadataCatalog.data)
    try:
        for names in (None, ["things", "sky", "sea", "sand"]):
            if names:
                MetadataCatalog.get("tiny").stuff_classes = names
                MetadataCatalog.get("tiny").stuff_colors = [[0, 0, 255]] * 4
            content = found(cfg, weights, [images / "1.png"], threshold=1.0)
            assert content["annotations"] == []
            drawn[bool(names)] = cv2.imread(str(tmp_path / "out" / "drawings" / "1.png"))
    finally:
        MetadataCatalog.data = before
        MetadataCatalog.pop("tiny")
        DatasetCatalog.pop("tiny")
    image = cv2.imread(str(images / "1.png"))
    assert np.array_equal(drawn[False], image)
    assert (drawn[True] != image).any(2).mean() > 0.5


# ------------------------------------------------------------------ the command


def arguments(tiny, weights, output, *inputs):
    config = ("--config-file", tiny.plain, "--weights", weights)
    return [str(x) for x in (*config, "--input", *inputs, "--output", output)]


def test_the_command_says_what_it_wrote_and_shows_progress(tiny, trained, images, tmp_path, capsys):
    argv = arguments(tiny, trained / "model_final.pth", tmp_path / "out", images / "0.png")
    run([*argv, "--threshold", "0", "--no-drawings", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.2"])
    printed = capsys.readouterr()
    count = len(json.loads((tmp_path / "out/predictions.json").read_text())["annotations"])
    path = tmp_path / "out" / "predictions.json"
    assert printed.out == f"Wrote {path}: {count} detections in 1 images.\n"
    assert "1/1" in printed.err


def test_files_that_cannot_be_read_are_named_when_the_others_are_done(
    tiny, trained, images, tmp_path, capsys
):
    half = (images / "0.png").read_bytes()
    (tmp_path / "half.png").write_bytes(half[: len(half) // 2])
    (tmp_path / "text.mp4").write_text("no video")
    inputs = (tmp_path / "half.png", tmp_path / "text.mp4", images / "0.png")
    with pytest.raises(SystemExit) as stop:
        run(arguments(tiny, trained / "model_final.pth", tmp_path / "out", *inputs))
    assert stop.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: 2 of 3 files failed")
    assert f"{tmp_path / 'half.png'} (no readable image" in line
    assert f"{tmp_path / 'text.mp4'} (no readable video" in line
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [Path(x["file_name"]).name for x in content["images"]] == ["0.png"]


def test_what_was_found_is_kept_when_the_rest_breaks_off(
    tiny, trained, images, tmp_path, monkeypatch
):
    opened = Image.open

    def interrupted(file, *args):  # nobody can be told to press Ctrl-C at the third image
        if "2.png" in str(getattr(file, "name", file)):
            raise KeyboardInterrupt
        return opened(file, *args)

    monkeypatch.setattr(Image, "open", interrupted)
    files = find_inputs([str(images)])
    with pytest.raises(KeyboardInterrupt):
        predict(tiny.cfg("plain"), str(trained / "model_final.pth"), files, tmp_path)
    assert len(json.loads((tmp_path / "predictions.json").read_text())["images"]) == 2


def test_a_drawing_that_cannot_be_written_is_an_error(tiny, trained, images, tmp_path):
    (tmp_path / "drawings" / "0.png").mkdir(parents=True)
    files = find_inputs([str(images / "0.png")])
    with pytest.raises(UserError, match="drawings/0.png could not be written"):
        predict(tiny.cfg("plain"), str(trained / "model_final.pth"), files, tmp_path)
    assert os.listdir(tmp_path / "drawings") == ["0.png"]
    assert len(json.loads((tmp_path / "predictions.json").read_text())["images"]) == 1


def test_files_that_cannot_be_looked_at_or_drawn_are_passed_over(
    tiny, trained, images, tmp_path, monkeypatch
):
    cv2.imwrite(str(tmp_path / "narrow.png"), np.zeros((20000, 1, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "one.png"), np.zeros((1, 1, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "z.png"), cv2.imread(str(images / "0.png")))
    Image.new("L", (1500, 1500)).save(tmp_path / "bomb.png")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("no image")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    weights, output = str(trained / "model_final.pth"), tmp_path / "out"
    with pytest.raises(UserError, match="4 of 6 files failed") as e:
        predict(tiny.cfg("plain"), weights, find_inputs([str(tmp_path)]), output, 0.0)
    failed = json.loads((output / "predictions.json").read_text())["info"]["failed"]
    assert list(failed) == ["bomb.png", "empty.jpg", "narrow.png", "text.jpg"]
    assert "exceeds limit" in failed["bomb.png"]
    assert failed["narrow.png"].startswith("cannot be looked at")
    assert all(f"{tmp_path / name} ({reason})" in str(e.value) for name, reason in failed.items())
    content = json.loads((output / "predictions.json").read_text())
    assert [x["file_name"] for x in content["images"]] == ["one.png", "z.png"]
    assert sorted(os.listdir(output / "drawings")) == ["one.png", "z.png"]


@pytest.mark.parametrize("threshold", [float("nan"), -1, 2, float("inf")])
def test_a_threshold_that_is_no_share_is_refused(tiny, images, tmp_path, threshold):
    files = find_inputs([str(images / "0.png")])
    with pytest.raises(UserError, match="is no score: give --threshold one of 0 to 1"):
        predict(tiny.cfg("plain"), "unread.pth", files, tmp_path / "out", threshold)


@pytest.mark.parametrize("output", ["a\0b", "file", "file/below", "/proc/nowhere"])
def test_an_output_that_cannot_be_written_to_is_refused(tiny, trained, images, tmp_path, output):
    (tmp_path / "file").write_text("mine")
    files = find_inputs([str(images / "0.png")])
    with pytest.raises(UserError, match="is no folder that can be written to"):
        predict(tiny.cfg("plain"), str(trained / "model_final.pth"), files, tmp_path / output)
    assert (tmp_path / "file").read_text() == "mine"


def test_drawings_do_not_replace_inputs_or_one_another(tiny, trained, images, tmp_path):
    weights, clip = str(trained / "model_final.pth"), tmp_path / "a.avi.mp4"
    write_video(clip, images, (1, 3, 5))
    write_video(tmp_path / "a.avi", images, (1, 3), "MJPG")
    predict(tiny.cfg("plain"), weights, find_inputs([str(tmp_path)]), tmp_path / "out")
    drawn = {x.name: len(read_video(x)) for x in (tmp_path / "out" / "drawings").iterdir()}
    assert drawn == {"a.avi.mp4": 3, "a.avi.mp4.mp4": 2}

    files = find_inputs([str(tmp_path / "out" / "drawings")])
    before = files[0].read_bytes()
    with pytest.raises(UserError, match="would replace the input .*a.avi.mp4"):
        predict(tiny.cfg("plain"), weights, files, tmp_path / "out")
    assert files[0].read_bytes() == before
    predict(tiny.cfg("plain"), weights, files, tmp_path / "out", drawings=False)


@pytest.mark.parametrize(("name", "limit"), [("0.png", 5000), ("clip.mp4", 20_000)])
def test_a_full_disk_leaves_no_half_drawing_and_what_was_found(
    tiny, trained, images, tmp_path, little_space, name, limit
):
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "0.png"), noise)
    write_video(tmp_path / "clip.mp4", images, (1, 3, 5) * 10)
    files, output = find_inputs([str(tmp_path / name)]), tmp_path / "out"
    with pytest.raises(UserError, match="could not be written"), little_space(limit):
        predict(tiny.cfg("plain"), str(trained / "model_final.pth"), files, output, 1.0)
    assert os.listdir(output / "drawings") == []
    assert len(json.loads((output / "predictions.json").read_text())["images"]) >= 1


def test_predictions_that_find_no_space_leave_the_old_ones(
    tiny, trained, images, tmp_path, little_space
):
    (tmp_path / "predictions.json").write_text("old")
    weights, files = str(trained / "model_final.pth"), find_inputs([str(images)])
    with pytest.raises(UserError, match="predictions.json could not be written"):
        with little_space(1000):
            predict(tiny.cfg("plain"), weights, files, tmp_path, 0.0, drawings=False)
    assert os.listdir(tmp_path) == ["predictions.json"]
    assert (tmp_path / "predictions.json").read_text() == "old"


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.ROI_HEADS.NUM_CLASSES", "3"], "has 2 classes: set it to 2"),
        (["DATASETS.TEST", "('tin',)"], "did you mean 'tiny'"),
        (["MODEL.META_ARCHITECTURE", "DistilRCNN"], "did you mean 'DistillRCNN'"),
        (["MODEL.META_ARCHITECTURE", "ProposalNetwork", "DATASETS.TEST", "()"], "no telling how"),
        (["MODEL.RPN.CONV_DIMS", "[8, 8]"], "not of this architecture"),
    ],
)
def test_mistakes_end_in_a_sentence(tiny, trained, images, tmp_path, capsys, opts, message):
    argv = arguments(tiny, trained / "model_final.pth", tmp_path / "out", images / "0.png")
    with pytest.raises(SystemExit):
        run([*argv, *opts])
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ") and message in line
    assert not (tmp_path / "out").exists()


def test_a_model_of_grey_images_is_refused(tiny, images, tmp_path):
    cfg = tiny.cfg("plain", "INPUT.FORMAT", "L")
    files = find_inputs([str(images / "0.png")])
    with pytest.raises(UserError, match=r"INPUT.FORMAT is L, but .* BGR or RGB: evaluate"):
        predict(cfg, "unread.pth", files, tmp_path / "out")


# ------------------------------------------------------------------ classifiers


@pytest.mark.parametrize(
    "opts",
    [
        ("INPUT.FORMAT", "BGR"),
        ("INPUT.FORMAT", "RGB"),
        # resized and the middle cut out, as images that are read one by one are
        ("INPUT.IMAGES.IN_MEMORY", False, "INPUT.IMAGES.RESIZE_TEST", 40, "INPUT.IMAGES.SIZE", 24),
    ],
)
def test_classes_are_those_of_the_evaluation(tiny_images, distilled_images, found, opts):
    cfg = tiny_images.cfg("dpk", *opts, "DATALOADER.NUM_WORKERS", 0, "DATASETS.TRAIN", "('gone',)")
    weights = distilled_images / "model_final.pth"
    folder = tiny_images.plain.parent / "images"
    content = found(cfg, weights, [f"{folder}/*/*.png"], drawings=False)
    plain = build_model(plain_architecture(cfg)).eval()
    load_weights_strictly(plain, str(weights), "weights")
    with torch.no_grad():
        expected = torch.cat([plain(x) for x in build_image_test_loader(cfg, "discs_test")])
    expected = expected.softmax(1)
    assert [x["name"] for x in content["categories"]] == ["disc", "none", "square"]
    names = [x["file_name"] for x in content["images"]]
    assert names == sorted(names) and len(names) == len(expected) == 30
    for name, scores in zip(names, expected, strict=True):
        ours = of_image(content, name)
        assert [x["category_id"] for x in ours] == scores.argsort(descending=True).tolist()
        for x in ours:
            assert x["score"] == pytest.approx(scores[x["category_id"]].item(), abs=1e-5)
            assert x.keys() == {"id", "image_id", "category_id", "score"}


def test_a_classifiers_file_is_a_coco_dataset_and_its_drawings_have_text(
    tiny_images, distilled_images, found, tmp_path
):
    cfg, weights = tiny_images.cfg("plain"), distilled_images / "model_final.pth"
    folder = tiny_images.plain.parent / "images"
    content = found(cfg, weights, [f"{folder}/*/0.png"])
    coco = COCO(str(tmp_path / "out" / "predictions.json"))
    assert len(coco.getAnnIds()) == 9 and len(coco.getImgIds()) == 3
    source = cv2.imread(str(folder / "disc" / "0.png"))
    drawn = cv2.imread(str(tmp_path / "out" / "drawings" / "disc" / "0.png"))
    assert drawn.shape == (256, 256, 3)  # enlarged, so that the text can be read
    enlarged = cv2.resize(source, (256, 256), interpolation=cv2.INTER_NEAREST).astype(int)
    same = (abs(drawn - enlarged) < 4).all(2)
    assert same[128:, 128:].mean() > 0.9 and same[:40, :40].mean() < 0.5  # text in the corner

    limit = sorted(x["score"] for x in content["annotations"])[4]
    fewer = found(cfg, weights, [f"{folder}/*/0.png"], threshold=limit)
    assert len(fewer["annotations"]) == 5 and len(fewer["images"]) == 3


def test_the_command_classifies(tiny_images, distilled_images, tmp_path, capsys):
    argv = arguments(tiny_images, distilled_images / "model_final.pth", tmp_path / "out")
    folder = tiny_images.plain.parent / "images" / "disc"
    argv.insert(argv.index("--input") + 1, str(folder))
    run([*argv, "--no-drawings"])
    path = tmp_path / "out" / "predictions.json"
    assert capsys.readouterr().out == f"Wrote {path}: 30 classes in 10 images.\n"
    with pytest.raises(SystemExit):
        run([*argv, "MODEL.CLASSIFIER.NUM_CLASSES", "4"])
    assert "has 3 classes: set it to 3" in capsys.readouterr().err.splitlines()[-1]
