"""Images that training or evaluation would stumble over."""

import multiprocessing
import os
import zipfile

import numpy as np
import pytest
from detectron2.data.detection_utils import SizeMismatchError, check_image_size, read_image
from PIL import Image

from dpk_det.data.image_files import ImageFile, check_image_files, find_problem
from dpk_det.errors import UserError

NOISE = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)


@pytest.fixture
def save(tmp_path):
    """``save("a.png", image, ...)`` gives the file."""

    def save(name, image=None, size=(40, 30), **options):
        image = Image.fromarray(NOISE) if image is None else image
        image.save(tmp_path / name, **options)
        return ImageFile(str(tmp_path / name), size)

    return save


def as_detectron2_reads(file):
    """Whether Detectron2 takes the image."""
    try:
        image = read_image(file.path, "BGR")
        check_image_size({"width": file.size[0], "height": file.size[1]}, image)
    except (OSError, SizeMismatchError, Image.DecompressionBombError, SyntaxError):
        return False
    return True


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK"])
def test_modes_that_are_taken(save, mode):
    image = Image.fromarray(NOISE).convert(mode)
    file = save("a.tif" if mode == "CMYK" else "a.png", image)
    assert find_problem(file) == "" and as_detectron2_reads(file)


@pytest.mark.parametrize(
    ("name", "pixels"),
    [
        ("a.png", np.full((30, 40), 40000, np.uint16)),
        ("a.tif", np.full((30, 40), 40000, np.int32)),
        ("a.tif", np.full((30, 40), 0.5, np.float32)),
    ],
)
def test_more_than_8_bits_would_be_cut_off(save, name, pixels):
    file = save(name, Image.fromarray(pixels))
    assert "more than 8 bits a channel" in find_problem(file, decode=False)
    assert read_image(file.path, "BGR").max() in (0, 255)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_sizes_are_those_of_the_image_as_it_is_turned(save, name, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for size in ((40, 30), (30, 40)):
        file = save(name, size=size, exif=exif)
        problem = find_problem(file, decode=False)
        assert (problem == "") == as_detectron2_reads(file)
        turned = orientation >= 5 and size == (40, 30)
        assert (f"EXIF orientation ({orientation}) turns it" in problem) == turned


def test_damaged_exif_is_none(save, monkeypatch):
    file = save("a.jpg", exif=b"Exif\0\0nonsense")
    assert find_problem(file) == "" and as_detectron2_reads(file)


def test_another_size(save):
    problem = find_problem(save("a.png", size=(40, 31)), decode=False)
    assert "a.png has 40 x 30 pixels where its annotations say 40 x 31: correct" in problem
    assert find_problem(save("a.png", size=None), decode=False) == ""


DAMAGE = {
    "empty": b"",
    "text": b"no image",
    "zeros": b"\0" * 1000,
    "html": b"<html>404</html>",
}


@pytest.mark.parametrize("kind", [*DAMAGE, "absent", "folder", "half a header"])
def test_what_is_no_image(save, tmp_path, kind):
    file = ImageFile(str(tmp_path / "a.jpg"), (40, 30))
    if kind == "folder":
        (tmp_path / "a.jpg").mkdir()
    elif kind == "half a header":
        save("a.jpg")
        (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:30])
    elif kind != "absent":
        (tmp_path / "a.jpg").write_bytes(DAMAGE[kind])
    problem = find_problem(file, decode=False)
    what = "does not exist" if kind == "absent" else "cannot be read as an image"
    assert problem.startswith(f"{file.path} {what}") and "\n" not in problem
    assert not as_detectron2_reads(file)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    assert "it is no file" in find_problem(ImageFile(str(tmp_path / "a.png")), decode=False)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.bmp", "a.webp", "a.tif"])
def test_an_image_that_is_cut_off(save, name):
    file = save(name)
    with open(file.path, "rb+") as stream:
        stream.truncate(int(stream.seek(0, 2) * 0.8))
    assert "cannot be read as an image" in find_problem(file)
    assert not as_detectron2_reads(file)


def test_a_decompression_bomb(save, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    file = save("a.png")
    assert "decompression bomb" in find_problem(file, decode=False)
    assert not as_detectron2_reads(file)


def test_a_size_that_does_not_fit(save):
    file = save("a.png", Image.new("RGB", (900, 1)), size=(900, 1))
    assert find_problem(file, fits=lambda width, height: width < 10 * height).startswith(
        f"{file.path} has 900 x 1 pixels, which cannot be resized"
    )


def test_all_images_are_looked_at(save, tmp_path, capsys):
    files = [save(f"{i}.png") for i in range(200)]
    check_image_files(files, "pets")
    assert capsys.readouterr().err == ""  # too quick for a bar
    (tmp_path / "77.png").unlink()
    with pytest.raises(UserError) as error:
        check_image_files(files, "pets")
    assert str(error.value).startswith(f"{files[77].path} does not exist")
    (tmp_path / "150.png").write_bytes(b"")
    with pytest.raises(UserError) as error:
        check_image_files(files, "pets")
    assert str(error.value).startswith(
        f"2 of 200 images of pets cannot be used, first: {files[77].path} does not exist"
    )


def test_images_in_an_archive(save, tmp_path):
    save("a.png")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "cat/a.png")
        archive.writestr("cat/b.png", b"no image")
    path = str(tmp_path / "a.zip")
    assert find_problem(ImageFile("cat/a.png", archive=path)) == ""
    assert f"cat/b.png in {path} cannot be" in find_problem(ImageFile("cat/b.png", archive=path))


def test_forked_processes_read_a_zip_each_by_itself(tmp_path):
    content = {f"{i}.png": os.urandom(5000) for i in range(200)}
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    files = [ImageFile(name, archive=str(tmp_path / "a.zip")) for name in content]

    def read_all():
        for file in files * 20:
            with file.open() as stream:
                assert stream.read() == content[file.path]

    read_all()  # the parent has the file open
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=read_all) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
