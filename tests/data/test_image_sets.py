"""Images with a class each, from folders, zips and CIFAR's archives, and what is refused."""

import io
import pickle
import tarfile
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from PIL import Image

from dpk_det.config.loading import load_config
from dpk_det.data import check_datasets, dataset_sizes, image_sets, register_image_datasets
from dpk_det.data.image_files import find_problem
from dpk_det.data.image_sets import find_place, read_images
from dpk_det.errors import UserError


def draw_archive(folder, hundred):
    """CIFAR's archive with four images of training, in two batches of CIFAR-10, and two of test."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
    key, names = "labels", [f"class{i}" for i in range(10)]
    parts = {"data_batch_1": [0, 1], "data_batch_2": [2, 3], "test_batch": [4, 5]}
    inner, meta, meta_key = "cifar-10-batches-py", "batches.meta", "label_names"
    if hundred:
        key, names = "fine_labels", [f"class{i}" for i in range(100)]
        parts = {"train": [0, 1, 2, 3], "test": [4, 5]}
        inner, meta, meta_key = "cifar-100-python", "meta", "fine_label_names"
    path = folder / f"cifar-{len(names)}-python.tar.gz"
    files = {
        part: {"data": images[rows].reshape(len(rows), 3072), key: [9 - i for i in rows]}
        for part, rows in parts.items()
    }
    files[meta] = {meta_key: names, "coarse_label_names": ["no", "use"]}
    (folder / inner).mkdir()
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            # as the archives are, written by Python 2
            data = pickle.dumps(content, protocol=2)
            (folder / inner / name).write_bytes(data)
            info = tarfile.TarInfo(f"{inner}/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path, folder / inner, images


@pytest.mark.parametrize("hundred", [False, True])
@pytest.mark.parametrize("unpacked", [False, True])
def test_cifars_archive_is_read_packed_or_not(tmp_path, hundred, unpacked):
    archive, folder, images = draw_archive(tmp_path, hundred)
    path = str(folder if unpacked else archive)
    train, test = read_images(path, "train"), read_images(path, "test")
    assert train.labels == [9, 8, 7, 6] and test.labels == [5, 4]
    assert train.classes == test.classes == [f"class{i}" for i in range(100 if hundred else 10)]
    assert np.array_equal(torch.stack([train[i][0] for i in range(4)]), images[:4])
    assert np.array_equal(test[1][0], images[5]) and test[1][1] == 4


def test_an_archive_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("this ran",)

    (tmp_path / "train").write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(UserError, match=r"cannot be read as the train part.*print"):
        read_images(str(tmp_path), "train")


def test_folder_and_zip_hold_the_same(tiny_images):
    images = tiny_images.plain.parent / "images"
    folder, zipped = read_images(str(images), ""), read_images(f"{images}.zip", "")
    assert folder.classes == zipped.classes == ["disc", "none", "square"]
    assert folder.labels == zipped.labels == [0] * 10 + [1] * 10 + [2] * 10
    for i in (0, 29):
        assert torch.equal(folder[i][0], zipped[i][0]) and folder[i][1] == zipped[i][1]
    bgr = cv2.imread(str(images / "square" / "9.png"))
    assert np.array_equal(folder[29][0], bgr[..., ::-1].transpose(2, 0, 1))


@pytest.mark.parametrize("around", ["", "pets/", "data/pets/"])
@pytest.mark.parametrize("with_folders", [False, True])
def test_folder_and_zip_have_the_same_classes(tmp_path, around, with_folders):
    images = tmp_path / around / "images"
    for name in ("cat/2021/1", "cat/0", "cat/2020/2", "cat-x/2021/3", "dog/a/2021/4", "stray"):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(f"{images / name}.png", np.zeros((4, 4), np.uint8))
    root = str(tmp_path / "images" if not around else tmp_path / around.split("/")[0])
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("__MACOSX/images/cat/._0.png", b"")
        for path in sorted(Path(root).rglob("*")):
            if with_folders or path.is_file():
                archive.write(path, path.relative_to(tmp_path))
    folder = read_images(str(images), "")
    zipped = read_images(str(tmp_path / "images.zip"), "")
    assert zipped.classes == folder.classes == ["cat", "cat-x", "dog"]
    assert zipped.labels == folder.labels == [0, 0, 0, 1, 2]
    names = [[Path(x.path).name for x in each.image_files()] for each in (folder, zipped)]
    assert names[0] == names[1] == ["0.png", "2.png", "1.png", "3.png", "4.png"]


def test_a_zip_of_one_class(tmp_path):
    with zipfile.ZipFile(tmp_path / "one.zip", "w") as archive:
        archive.writestr("pets/", b"")
        archive.writestr("pets/cat/0.png", b"")
    assert read_images(str(tmp_path / "one.zip"), "").classes == ["cat"]


@pytest.mark.parametrize("name", ["0.jpg", "0.png", "0.webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_predict_turns_it(tmp_path, name, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    save_image(tmp_path / "a" / name, exif)
    assert_read_as_detectron2_reads(tmp_path, name)


@pytest.mark.parametrize("damage", ["nonsense", "text in place of a width"])
def test_damaged_exif_is_tolerated(tmp_path, damage):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"  # Pillow fails when it writes this text as a width
    data = b"Exif\0\0nonsense" if damage == "nonsense" else exif.tobytes()
    save_image(tmp_path / "a" / "0.jpg", data.replace(b"\x01\x0f", b"\x01\x00"))
    assert_read_as_detectron2_reads(tmp_path, "0.jpg")


def save_image(path, exif):
    path.parent.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, exif=exif)


def assert_read_as_detectron2_reads(folder, name):
    expected = read_image(str(folder / "a" / name), "RGB").transpose(2, 0, 1)
    image, _ = read_images(str(folder), "")[0]
    assert np.array_equal(image, expected)


def test_a_grey_image_has_three_channels_and_a_broken_one_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    cv2.imwrite(str(tmp_path / "a" / "0.png"), np.full((5, 4), 7, np.uint8))
    (tmp_path / "a" / "1.png").write_bytes(b"no image")
    images = read_images(str(tmp_path), "")
    assert torch.equal(images[0][0], torch.full((3, 5, 4), 7, dtype=torch.uint8))
    with pytest.raises(UserError, match=r"1\.png cannot be read as an image"):
        images[1]


def test_what_is_no_dataset_is_refused_by_its_path(tmp_path):
    (tmp_path / "empty").mkdir()
    zipfile.ZipFile(tmp_path / "flat.zip", "w").writestr("0.png", b"")
    zipfile.ZipFile(tmp_path / "none.zip", "w").close()
    (tmp_path / "text.tar.gz").write_text("text")
    for name, part in [
        ("empty", ""),
        ("flat.zip", ""),
        ("none.zip", ""),
        ("text.tar.gz", ""),
        ("text.tar.gz", "train"),
        ("empty", "test"),
        ("absent", ""),
    ]:
        with pytest.raises(UserError, match=f"{name}.*correct its path"):
            read_images(str(tmp_path / name), part)


@pytest.mark.parametrize(
    "layout", ["zip", "folder", "archive", "nested archive", "unpacked", "nested unpacked"]
)
def test_cifar_is_found_below_the_folder_of_all_datasets(tmp_path, monkeypatch, layout):
    monkeypatch.setattr(image_sets, "_register", lambda name, *at: found.update({name: at}))
    found = {}
    image_sets.register_all(str(tmp_path))
    nested = tmp_path / "cifar10"
    nested.mkdir()
    if layout in ("zip", "folder"):
        (nested / ("train.zip" if layout == "zip" else "train")).mkdir()
        expected = nested / ("train.zip" if layout == "zip" else "train"), ""
    else:
        archive, folder, _ = draw_archive(nested if "nested" in layout else tmp_path, False)
        if "unpacked" in layout:
            archive.unlink()
        expected = (folder if "unpacked" in layout else archive), "train"
    MetadataCatalog.get("made_up_cifar").places = found["cifar10_train"]
    assert find_place("made_up_cifar") == (str(expected[0]), expected[1])
    MetadataCatalog.remove("made_up_cifar")


def test_entries_are_registered_by_name(tmp_path, monkeypatch):
    draw_archive(tmp_path, False)
    monkeypatch.setenv("HERE", str(tmp_path))
    cfg = load_config("", ["MODEL.META_ARCHITECTURE", "ImageClassifier"])
    cfg.DATASETS.IMAGES.few = ["$HERE/cifar-10-python.tar.gz", "train"]
    cfg.DATASETS.IMAGES.fewer = ["$HERE/cifar-10-batches-py", "test"]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("few",), ("fewer",)
    cfg.MODEL.CLASSIFIER.NUM_CLASSES = 10
    for _ in range(2):
        register_image_datasets(cfg)
    check_datasets(cfg)
    assert dataset_sizes(cfg) == {"few": 4, "fewer": 2}
    cfg.DATASETS.IMAGES.few = "$HERE/elsewhere"
    with pytest.raises(UserError, match=r"DATASETS.IMAGES.few .* already registered"):
        register_image_datasets(cfg)


@pytest.mark.parametrize("entry", [["a.tar.gz"], ["a.tar.gz", "valid"], "", 3, ["", "train"]])
def test_an_entry_that_is_no_place_is_refused(entry):
    cfg = load_config("")
    cfg.DATASETS.IMAGES.pets = entry
    with pytest.raises(UserError, match=r"DATASETS.IMAGES.pets is .*: give the path"):
        register_image_datasets(cfg)


def test_datasets_must_suit_the_model(tiny, tiny_images, tmp_path):
    check_datasets(tiny_images.cfg("plain"))
    tiny.cfg("plain")  # registers its own
    for config, opts, message in [
        (tiny_images, ["MODEL.CLASSIFIER.NUM_CLASSES", 4], "NUM_CLASSES is 4.*set it to 3"),
        (tiny_images, ["DATASETS.TEST", ("tiny",)], "has no use for dataset tiny.*DATASETS.IMAGES"),
        (tiny, ["DATASETS.TEST", ("discs_test",)], "has no use for dataset discs_test.*JSON"),
        (
            tiny_images,
            ["DATASETS.TEST", ("disks_test",)],
            "mean 'discs_test'.*IMAGES.disk",
        ),
        (tiny_images, ["DATASETS.TEST", ("imagenet_val",)], "not at .*DETECTRON2_DATASETS"),
    ]:
        with pytest.raises(UserError, match=message):
            check_datasets(config.cfg("plain", *opts))
    cfg = tiny_images.cfg("plain")
    *known, last = DatasetCatalog.get("discs_train").classes
    for other, classes in {"moved": ["a", *known], "renamed": [*known, f"{last}s"]}.items():
        for name in classes:
            (tmp_path / other / name).mkdir(parents=True)
            cv2.imwrite(str(tmp_path / other / name / "0.png"), np.zeros((4, 4), np.uint8))
        cfg.DATASETS.IMAGES[other] = str(tmp_path / other)
    cfg.DATASETS.IMAGES.absent = str(tmp_path / "nowhere")
    register_image_datasets(cfg)
    for other, what in (("moved", "'disc' is number 0 of one"), ("renamed", f"'{last}' and ")):
        cfg.DATASETS.TEST = (other,)
        with pytest.raises(UserError, match=f"discs_train and {other} .*{what}"):
            check_datasets(cfg)
    cfg.DATASETS.TEST = ("absent",)
    with pytest.raises(UserError, match=r"absent is not at .*correct DATASETS.IMAGES.absent"):
        check_datasets(cfg)


# ------------------------------------------------------------------ damage


@pytest.fixture
def archive(tiny_images, tmp_path):
    """A zip of three classes of images, to be damaged."""
    path = tmp_path / "images.zip"
    path.write_bytes((tiny_images.plain.parent / "images.zip").read_bytes())
    return path


def test_a_zip_that_is_cut_off_is_named(archive):
    archive.write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(UserError, match=f"{archive} cannot be read as images"):
        read_images(str(archive), "")


def test_an_image_within_a_zip_that_is_damaged_is_named(archive):
    data = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as file:
        info = file.infolist()[3]
    start = info.header_offset + 30 + len(info.filename)
    data[start : start + 500] = bytes(500)
    archive.write_bytes(data)
    images = read_images(str(archive), "")
    number = [x.path for x in images.image_files()].index(info.filename)
    with pytest.raises(UserError, match=f"{info.filename} in {archive} cannot be read as an image"):
        images[number]
    (problem,) = filter(None, map(find_problem, images.image_files()))
    assert info.filename in problem


def test_an_empty_class_is_named_in_folder_and_zip(archive, tmp_path):
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path)
    (tmp_path / "images" / "star").mkdir()
    with pytest.raises(UserError, match="images cannot be read .*star"):
        read_images(str(tmp_path / "images"), "")
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("images/", "")
        file.writestr("images/star/", "")
        file.writestr("__MACOSX/", "")
    with pytest.raises(UserError, match="has no image of class star: add some"):
        read_images(str(archive), "")


@pytest.mark.parametrize(
    "batch",
    [
        {},
        {"labels": [0, 1], "data": np.zeros((3, 3072), np.uint8)},
        {"labels": [0, 1, 7], "data": np.zeros((3, 3072), np.uint8)},
        {"labels": [0, 1, 1], "data": np.zeros((3, 3000), np.uint8)},
        {"labels": None, "data": None},
        [1, 2],
    ],
)
def test_a_batch_of_cifar_that_is_none_is_named(tmp_path, batch):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["a", "b"]}))
    (folder / "data_batch_1").write_bytes(pickle.dumps(batch))
    with pytest.raises(UserError, match=f"{folder} cannot be read as the train part") as error:
        read_images(str(folder), "train")
    assert "\n" not in str(error.value)


def test_check_opens_the_images_of_classifiers(tiny_images, tmp_path, archive):
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path)
    broken = tmp_path / "images" / "disc" / "3.png"
    broken.write_bytes(b"no image")
    cfg = tiny_images.cfg("plain")
    cfg.DATASETS.IMAGES.broken = str(tmp_path / "images")
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("broken",)
    register_image_datasets(cfg)
    check_datasets(cfg)  # at the start of a training they are not opened
    with pytest.raises(UserError, match=f"{broken} cannot be read as an image"):
        check_datasets(cfg, all_images=True)
    Image.new("RGB", (1, 40000)).save(broken)
    cfg.INPUT.IMAGES.SIZE = 224
    with pytest.raises(UserError, match="1 x 40000 pixels, which cannot be resized"):
        check_datasets(cfg, all_images=True)
