"""The installer of Detectron2: what it refuses, what it mends, what it leaves alone."""

import ast
import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "install_detectron2.py"


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install_detectron2", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


installer = load_script()


def run(code_or_script: str | Path, *args: str | Path, **env: str) -> subprocess.CompletedProcess:
    """Run code, or a script, in a new interpreter that has seen nothing of these tests."""
    head = [code_or_script] if isinstance(code_or_script, Path) else ["-c", code_or_script]
    return subprocess.run(
        [sys.executable, *map(str, head), *map(str, args)],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
    )


def mends_of(file: str, text: str = "") -> tuple:
    """The entries of the table for files like `file` in whose pattern the regex `text` is found."""
    entries = (m for m in installer.MENDS if Path(file).match(m.files))
    return tuple(m for m in entries if re.search(text, m.pattern))


def mended(root: Path, file: str, source: str, text: str = "") -> str:
    """`source`, as a file of the archive, after the mends that `mends_of` gives."""
    mends = mends_of(file, text)
    assert mends
    path = root / file
    path.parent.mkdir(parents=True)
    path.write_text(source)
    installer.mend(root, mends)
    return path.read_text()


def without_c_extension(code: str) -> subprocess.CompletedProcess:
    """Run code where ``from detectron2 import _C`` fails, even if Detectron2 was compiled."""
    return run("import sys; sys.modules['detectron2._C'] = None\n" + code)


# Refusals


def test_archive_of_another_hash_is_refused_in_one_sentence(tmp_path):
    archive = tmp_path / "other.tar.gz"
    archive.write_bytes(b"not it")
    result = run(SCRIPT, "--archive", archive, "--wheel-dir", tmp_path / "wheels")
    assert result.returncode == 2
    assert result.stderr == (
        f"The archive {archive} has sha256 {hashlib.sha256(b'not it').hexdigest()} instead of "
        f"{installer.ARCHIVE_SHA256}: get the source archive of pb1-detectron2==0.6 again.\n"
    )
    assert not (tmp_path / "wheels").exists()


def test_missing_archive_is_refused_in_one_sentence(tmp_path):
    archive = tmp_path / "nowhere.tar.gz"
    result = run(SCRIPT, "--archive", archive, "--wheel-dir", tmp_path)
    assert result.returncode == 2
    assert str(archive) in result.stderr and "--archive" in result.stderr
    assert result.stderr.count("\n") == 1


def test_old_setuptools_is_refused_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "setuptools.command.bdist_wheel", None)
    with pytest.raises(installer.InstallError, match="pip install 'setuptools>=70.1'` first"):
        installer.build_wheel(tmp_path / "archive", tmp_path)


def test_failure_of_pip_ends_in_one_sentence(tmp_path, monkeypatch, capsys):
    def fail(command: list[str], **_) -> subprocess.CompletedProcess:
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(installer.subprocess, "run", fail)
    assert installer.main(["--wheel-dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "pip download failed" in error and "--archive" in error and error.count("\n") == 1


def test_stand_in_for_torch_answers_with_name_and_version_alone(tmp_path):
    (tmp_path / "torch.py").write_text(installer.STAND_IN)
    (tmp_path / "setup.py").write_text("import torch\nraise RuntimeError('went on')\n")
    result = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "--name", "--version"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert (result.returncode, result.stdout.split()) == (0, ["pb1-detectron2", "0.6"])


def test_mend_that_matches_nothing_is_an_error(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n")
    mend = installer.Mend("*.py", r"y = (\d)", r"y = -\1", "there is no y")
    with pytest.raises(installer.InstallError, match="there is no y.*matched nothing"):
        installer.mend(tmp_path, (mend,))


def test_mends_are_applied_in_order_and_counted(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\nx = 2\n")
    (tmp_path / "b.py").write_text("x = 3\n")
    first = installer.Mend("*.py", r"^x = (\d)$", r"y = \1", "rename")
    second = installer.Mend("b.py", "y", "z", "rename again")
    assert installer.mend(tmp_path, (first, second)) == 4
    assert (tmp_path / "a.py").read_text() == "y = 1\ny = 2\n"
    assert (tmp_path / "b.py").read_text() == "z = 3\n"


# What each mend does


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("x.astype(np.bool)", "x.astype(bool)"),
        ("f(dtype=np.int, g=np.float)", "f(dtype=int, g=float)"),
        ("np.loadtxt(f, dtype=np.str)", "np.loadtxt(f, dtype=str)"),
        ("np.array(x, dtype=np.object)", "np.array(x, dtype=object)"),
    ],
)
def test_numpy_aliases_become_python_types(tmp_path, old, new):
    # Longer names that begin alike have to stay.
    keep = "np.bool_ np.int64 np.float32 np.object_ np.str_ np.interp xnp.int"
    file = "detectron2/structures/masks.py"
    assert mended(tmp_path, file, f"{old} {keep}", "bool|int") == f"{new} {keep}"


def test_pillow_linear_becomes_bilinear(tmp_path):
    file = "detectron2/data/transforms/transform.py"
    assert mended(tmp_path, file, "Image.LINEAR, x", "Image") == "Image.BILINEAR, x"


def test_copy_false_becomes_asarray(tmp_path):
    new = mended(tmp_path, "detectron2/layers/mask_ops.py", "np.array(mask, copy=False)", "copy")
    assert new == "np.asarray(mask)"


def test_a_dense_heads_norm_is_tried_with_as_many_channels_as_it_has_groups(tmp_path):
    file = "detectron2/modeling/meta_arch/retinanet.py"
    source = "norm_name = str(type(get_norm(norm, 1)))\nx = get_norm(norm, out_channels)"
    new = mended(tmp_path, file, source, r"norm, 1")
    assert new == source.replace("norm, 1)", "norm, 32)")


def test_model_zoo_finds_its_files_without_pkg_resources(tmp_path):
    source = (
        "import os\nimport pkg_resources\n"
        "def get_config_file(config_path):\n"
        "    cfg_file = pkg_resources.resource_filename(\n"
        '        "detectron2.model_zoo", os.path.join("configs", config_path)\n    )\n'
        "    return cfg_file\n"
    )
    new = mended(tmp_path, "detectron2/model_zoo/model_zoo.py", source, "pkg_resources")
    assert "pkg_resources" not in new
    config = tmp_path / "detectron2/model_zoo/configs/sub/a.yaml"
    config.parent.mkdir(parents=True)
    config.touch()
    (tmp_path / "detectron2/__init__.py").touch()
    (tmp_path / "detectron2/model_zoo/__init__.py").touch()
    code = "from detectron2.model_zoo.model_zoo import get_config_file as f; print(f('sub/a.yaml'))"
    result = run(code, PYTHONPATH=str(tmp_path))
    assert result.stdout.strip() == str(config), result.stderr


def test_import_of_compiled_part_is_put_off_until_it_is_used(tmp_path):
    source = "from detectron2 import _C\n\n\ndef op(x):\n    return _C.op(x)\n"
    namespace = {}
    new = mended(tmp_path, "detectron2/layers/rotated_boxes.py", source, "_C")
    exec(new.replace("from detectron2 import _C", "from nowhere_at_all import _C"), namespace)
    with pytest.raises(ImportError, match=r"_C\.op belongs to .* build Detectron2 from its source"):
        namespace["op"](1)


def test_rotated_nms_says_that_the_compiled_part_is_missing(tmp_path):
    import torch

    source = "def nms_rotated(b):\n    return torch.ops.detectron2.nms_rotated(b)\n"
    new = mended(tmp_path, "detectron2/layers/nms.py", source, "nms_rotated")
    if hasattr(torch.ops.detectron2, "nms_rotated"):
        pytest.skip("this Detectron2 has its compiled part")
    namespace = {"torch": torch}
    exec(new, namespace)
    with pytest.raises(ImportError, match="nms_rotated belongs to .* build Detectron2 from its"):
        namespace["nms_rotated"](1)


def test_coco_evaluation_falls_back_to_pycocotools(tmp_path):
    source = "from detectron2.evaluation.fast_eval_api import COCOeval_opt\n"
    new = mended(tmp_path, "detectron2/evaluation/coco_evaluation.py", source, "COCOeval_opt")
    namespace = {"COCOeval": "official"}
    exec(new.replace("detectron2.evaluation", "nowhere_at_all"), namespace)
    assert namespace["COCOeval_opt"] == "official"


def test_export_does_without_caffe2(tmp_path):
    new = mended(tmp_path, "detectron2/export/__init__.py", "from .api import *\nx = 1\n", "api")
    namespace = {"__name__": "nowhere_at_all", "__package__": "nowhere_at_all"}
    exec(new, namespace)
    assert namespace["x"] == 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("torch.meshgrid(y, x)", 'torch.meshgrid(y, x, indexing="ij")'),
        (
            "torch.meshgrid(\n    f(a, b=c.d),\n    f(e),\n)",
            'torch.meshgrid(\n    f(a, b=c.d),\n    f(e), indexing="ij"\n)',
        ),
    ],
)
def test_meshgrid_is_told_its_indexing(tmp_path, old, new):
    assert mended(tmp_path, "detectron2/modeling/anchor_generator.py", old, "meshgrid") == new


def test_mixed_precision_leaves_the_deprecated_module(tmp_path):
    source = (
        "from torch.cuda.amp import GradScaler\n"
        "from torch.cuda.amp import autocast\n"
        "with autocast():\n"
    )
    assert mended(tmp_path, "detectron2/engine/train_loop.py", source, "amp|autocast") == (
        'from torch.amp import GradScaler\nfrom torch.amp import autocast\nwith autocast("cuda"):\n'
    )


# What it leaves alone


def test_importable_detectron2_is_left_alone(tmp_path):
    package = tmp_path / "detectron2"
    package.mkdir()
    (package / "__init__.py").write_text('__version__ = "9.9"\n')
    # An archive that would be refused: it must not even be looked at.
    result = run(SCRIPT, "--archive", tmp_path / "nowhere", PYTHONPATH=str(tmp_path))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"Detectron2 9.9 is there: {package}.\n"


def test_stray_folder_of_that_name_is_no_detectron2(tmp_path):
    (tmp_path / "detectron2").mkdir()
    result = run(
        "import runpy, sys\n"
        "script = runpy.run_path(sys.argv[1])\n"
        "sys.path = [sys.argv[2]]\n"  # a package proper, further down the path, would win
        "print(script['is_installed']())\n",
        SCRIPT,
        tmp_path,
    )
    assert result.stdout == "False\n", result.stderr


def test_script_names_no_host_and_needs_the_standard_library_alone():
    text = SCRIPT.read_text()
    assert not re.search(r"https?://", text)
    nodes = list(ast.walk(ast.parse(text)))
    imports = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imports |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert imports <= sys.stdlib_module_names


# The installed Detectron2, whichever it is


def test_detectron2_works_without_its_compiled_part():
    result = without_c_extension(
        "import torch\n"
        "from detectron2.layers.rotated_boxes import pairwise_iou_rotated\n"
        "from detectron2.layers import ROIAlignRotated, DeformConv\n"
        "import detectron2.evaluation, detectron2.modeling, detectron2.engine\n"
        "try:\n"
        "    pairwise_iou_rotated(torch.ones(1, 5), torch.ones(1, 5))\n"
        "except (ImportError, AttributeError) as error:\n"  # AttributeError: upstream's newest
        "    print(error)\n"
    )
    assert "box_iou_rotated" in result.stdout, result.stderr


def test_coco_evaluator_works_without_compiled_part():
    result = without_c_extension(
        "from detectron2.evaluation import coco_evaluation as c\nprint(c.COCOeval_opt.__module__)\n"
    )
    assert result.stdout == "pycocotools.cocoeval\n", result.stderr


def test_compiled_part_has_no_stub():
    result = run("from detectron2 import _C; print(_C.get_compiler_version())")
    assert result.returncode == 0 or "ImportError" in result.stderr


# The archive itself


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    archive = os.environ.get("DPK_DET_D2_ARCHIVE")
    if not archive:
        pytest.skip("DPK_DET_D2_ARCHIVE does not name the source archive of pb1-detectron2 0.6")
    folder = tmp_path_factory.mktemp("wheel")
    result = run(SCRIPT, "--archive", archive, "--wheel-dir", folder)
    assert result.returncode == 0, result.stderr
    (path,) = folder.iterdir()
    assert path.name == "detectron2-0.6-py3-none-any.whl"
    with zipfile.ZipFile(path) as opened:
        yield opened


def test_wheel_holds_package_projects_and_configs(wheel):
    names = set(wheel.namelist())
    assert {
        "detectron2/engine/defaults.py",
        "detectron2/projects/point_rend/__init__.py",
        "detectron2/projects/deeplab/__init__.py",
        "detectron2/projects/panoptic_deeplab/__init__.py",
        "detectron2/model_zoo/configs/Base-RCNN-FPN.yaml",
        "detectron2/model_zoo/configs/common/models/fcos.py",
    } <= names
    configs = [n for n in names if n.startswith("detectron2/model_zoo/configs/")]
    assert sum(n.endswith(".yaml") for n in configs) == 92
    assert not [n for n in names if Path(n).name.startswith(("_C.", "setup."))]


def test_wheel_says_what_it_needs(wheel):
    metadata = wheel.read("detectron2-0.6.dist-info/METADATA").decode()
    needs = set(re.findall(r"^Requires-Dist: ([\w-]+)", metadata, re.M))
    assert {"fvcore", "iopath", "omegaconf", "hydra-core", "packaging", "tensorboard"} <= needs
    assert not needs & {"black", "future", "pydot", "torch"}


def test_every_file_of_the_wheel_compiles_and_uses_nothing_that_is_gone(wheel):
    gone = re.compile(r"\bnp\.(bool|int|float|object|str)\b|Image\.LINEAR\b|import pkg_resources")
    for name in wheel.namelist():
        if name.endswith(".py"):
            text = wheel.read(name).decode()
            compile(text, name, "exec")
            assert not gone.search(text), name
