"""IMPORTS: modules of somebody's own, imported before the rest of a config is read."""

import subprocess
import sys

import pytest

from dpk_det.config.loading import load_config
from dpk_det.config.methods import method_arguments
from dpk_det.distill import DISTILLERS
from dpk_det.errors import UserError

METHOD = """
from dpk_det.distill import Distiller, register_distiller

@register_distiller("{name}")
class Mine(Distiller):
    def __init__(self, levels, weight: float = 2.0):
        super().__init__(levels)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a module for each name; what they register is gone afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    known, imported = dict(DISTILLERS), set(sys.modules)
    for name in ("own_one", "own_two"):
        (tmp_path / f"{name}.py").write_text(METHOD.format(name=name))
    yield tmp_path
    DISTILLERS.clear()
    DISTILLERS.update(known)
    for name in set(sys.modules) - imported:
        del sys.modules[name]


def test_a_method_of_a_module_has_its_node(folder):
    (folder / "c.yaml").write_text(
        "IMPORTS: [own_one]\nDISTILL: {METHODS: [own_one], OWN_ONE: {WEIGHT: 5, LEVELS: [p3]}}\n"
    )
    cfg = load_config("c.yaml")
    assert method_arguments(cfg) == {"own_one": {"weight": 5.0, "levels": ["p3"]}}
    assert cfg.IMPORTS == ["own_one"]


def test_the_command_lines_modules_are_imported_besides_the_files(folder):
    (folder / "c.yaml").write_text("IMPORTS: [own_one]\n")
    cfg = load_config(
        "c.yaml", ["IMPORTS", "['own_two', 'own_one']", "DISTILL.OWN_TWO.WEIGHT", "1"]
    )
    assert cfg.IMPORTS == ["own_one", "own_two"]
    assert (cfg.DISTILL.OWN_ONE.WEIGHT, cfg.DISTILL.OWN_TWO.WEIGHT) == (2.0, 1.0)


def test_a_dumped_config_can_be_read_again(folder):
    cfg = load_config("", ["IMPORTS", "['own_one']"])
    (folder / "again.yaml").write_text(cfg.dump())
    assert load_config("again.yaml").DISTILL == cfg.DISTILL


def test_a_module_may_add_keys_whose_values_are_its_own_business(folder):
    (folder / "own_keys.py").write_text(
        "def add_config(cfg):\n    cfg.MODEL.OWN_DEPTH = 0\n    cfg.OWN_NAME = None\n"
    )
    cfg = load_config("", ["IMPORTS", "['own_keys']", "MODEL.OWN_DEPTH", "-3"])
    assert (cfg.MODEL.OWN_DEPTH, cfg.OWN_NAME) == (-3, None)
    with pytest.raises(UserError, match="no config key MODEL.OWN_DEPTH"):
        load_config("", ["MODEL.OWN_DEPTH", "-3"])


@pytest.mark.parametrize(
    ("source", "value", "message"),
    [
        ("", "['own_thre']", r"^IMPORTS names the module own_thre, which is neither below .* nor"),
        ("", "['own_one.part']", r"^IMPORTS names the module own_one\.part, which is neither"),
        ("import no_such_thing", "['own']", r"^The module own of IMPORTS needs no_such_thing: ins"),
        ("1 / 0", "['own']", r"^The module own of IMPORTS fails \(ZeroDivisionError: division by"),
        (
            "x = (",
            "['own']",
            r"^The module own of IMPORTS fails \(SyntaxError: .*\): correct it\.$",
        ),
        ("", "own_one", r"^IMPORTS is 'own_one': write a list of modules"),
        ("", "3", r"^IMPORTS is 3: write a list of modules"),
        ("", "[3]", r"^IMPORTS is \[3\]: write a list of names"),
    ],
)
def test_a_module_that_cannot_be_imported_is_a_sentence(folder, source, value, message):
    (folder / "own.py").write_text(source)
    with pytest.raises(UserError, match=message):
        load_config("", ["IMPORTS", value])


def test_a_script_in_another_folder_finds_the_working_directorys_modules(folder, tmp_path_factory):
    script = tmp_path_factory.mktemp("elsewhere") / "script.py"
    script.write_text(
        "from dpk_det import load_config\n"
        "print(load_config('', ['IMPORTS', \"['own_one']\"]).DISTILL.OWN_ONE.WEIGHT)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.stdout == "2.0\n", done.stderr


def test_a_key_that_must_be_given_is_asked_for_where_the_method_runs(folder):
    (folder / "own_must.py").write_text(
        METHOD.format(name="own_must").replace("weight: float = 2.0", "weight: float")
    )
    from dpk_det.config.methods import check_distillation

    opts = ["IMPORTS", "['own_must']", "MODEL.META_ARCHITECTURE", "DistillRCNN"]
    check_distillation(load_config("", opts))  # other methods run
    opts += ["DISTILL.METHODS", "['own_must']"]
    with pytest.raises(UserError, match="The method own_must needs the argument weight: give it"):
        check_distillation(load_config("", opts))
    check_distillation(load_config("", [*opts, "DISTILL.OWN_MUST.WEIGHT", "1"]))
