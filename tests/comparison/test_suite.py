"""Suites: what their files mean, in which order they are trained, and mistakes in them."""

from pathlib import Path

import pytest
import yaml

from dpk_det.comparison.opts import overrides
from dpk_det.comparison.plan import plan
from dpk_det.comparison.suite import read_suite, suite_name
from dpk_det.comparison.suite_configs import load_configs
from dpk_det.config.loading import load_config
from dpk_det.errors import UserError
from dpk_det.pairing.teacher import load_teacher_config

ROOT = Path(__file__).parents[2]
SUITES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs/compare").glob("*.yaml"))
MODEL_ZOO = "COCO-Detection/faster_rcnn_R_101_FPN_3x.yaml"


@pytest.fixture
def write(tmp_path):
    """Writes a suite of the shapes' configs, some of its keys changed; None takes one out."""

    def write(**changed):
        content = {
            "seeds": [1, 2],
            "common": {"SOLVER.MAX_ITER": 30, "SOLVER.STEPS": "(10, 20)"},
            "teachers": {
                "big": {"config": "configs/shapes/teacher.yaml", "opts": {"MODEL.FPN.NORM": "GN"}}
            },
            "baseline": "plain",
            "methods": {
                "inherit": {"config": "configs/shapes/inherit.yaml", "teacher": "big"},
                "plain": {"title": "plain student", "config": "configs/shapes/plain.yaml"},
                "dpk": {
                    "config": "configs/shapes/dpk.yaml",
                    "teacher": "big",
                    "opts": {"DISTILL.DPK.WEIGHT": 2.0, "SOLVER.MAX_ITER": 40},
                    "baseline": "inherit",
                },
            },
        }
        content = {k: v for k, v in (content | changed).items() if v is not None}
        path = tmp_path / "suite.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    return write


@pytest.fixture
def at_root(monkeypatch):
    """In the repository's root, where the paths in the suites start."""
    monkeypatch.chdir(ROOT)


def cfg_of(run):
    return load_config(run.config, run.opts)


# ------------------------------------------------------------------ configs/compare/


@pytest.mark.parametrize("path", SUITES)
def test_every_suite_here_parses_and_its_configs_load(path, at_root, tmp_path):
    suite = read_suite(Path(path))
    todo = plan(suite, tmp_path)
    configs = load_configs(todo, trains=False)  # refuses unknown keys
    assert set(configs) == set(todo.rows)
    for name, method in suite.methods.items():
        cfg = configs[name]
        distils = cfg.MODEL.META_ARCHITECTURE.startswith("Distill") or cfg.DISTILL.INHERIT
        assert distils == bool(cfg.DISTILL.TEACHER.CONFIG_FILE)
        if method.teacher is None or suite.teachers[method.teacher].weights is not None:
            continue
        # the teacher is built as it was trained
        built = load_teacher_config(cfg.DISTILL.TEACHER.CONFIG_FILE, cfg.DISTILL.TEACHER.OPTS)
        trained = configs[method.teacher]
        assert built.MODEL == trained.MODEL and built.INPUT == trained.INPUT
        assert cfg.DISTILL.TEACHER.WEIGHTS == str(tmp_path / method.teacher / "model_final.pth")


def test_there_is_a_suite_for_make_demo():
    assert "configs/compare/demo.yaml" in SUITES
    assert "tools/compare.py configs/compare/demo.yaml" in (ROOT / "Makefile").read_text()


# ------------------------------------------------------------------ what a suite means


def test_a_student_has_what_is_common_then_its_own_and_its_teacher(write, at_root, tmp_path):
    todo = plan(read_suite(write()), tmp_path)
    plain, dpk = (cfg_of(todo.methods[name][2]) for name in ("plain", "dpk"))
    assert (plain.SOLVER.MAX_ITER, dpk.SOLVER.MAX_ITER) == (30, 40)
    assert plain.SOLVER.STEPS == dpk.SOLVER.STEPS == (10, 20)
    assert dpk.DISTILL.DPK.WEIGHT == 2.0
    assert (plain.SEED, dpk.SEED) == (2, 2)
    assert plain.DISTILL.TEACHER.WEIGHTS == ""
    assert dpk.DISTILL.TEACHER.CONFIG_FILE == "configs/shapes/teacher.yaml"
    assert dpk.DISTILL.TEACHER.WEIGHTS == str(tmp_path / "big" / "model_final.pth")
    assert todo.methods["dpk"][2].folder == tmp_path / "dpk-seed2"


@pytest.mark.parametrize("where", ["config", "opts"])
def test_students_learn_from_the_average_if_the_teachers_figures_are_of_it(write, tmp_path, where):
    config, opts = ROOT / "configs/shapes/teacher.yaml", {}
    if where == "opts":
        opts["SOLVER.EMA_DECAY"] = 0.9
    else:
        own = tmp_path / "teacher.yaml"
        own.write_text(f"_BASE_: {config}\nSOLVER: {{EMA_DECAY: 0.9}}\n")
        config = own
    methods = {
        name: {"config": str(ROOT / f"configs/shapes/{name}.yaml")} for name in ("plain", "dpk")
    }
    methods["dpk"]["teacher"] = "big"
    teachers = {"big": {"config": str(config), "opts": opts}}
    todo = plan(read_suite(write(teachers=teachers, methods=methods, start="big")), tmp_path)
    average = tmp_path / "big" / "model_ema.pth"
    assert todo.teachers["big"].weights == average
    dpk, plain = (cfg_of(todo.methods[name][1]) for name in ("dpk", "plain"))
    assert dpk.DISTILL.TEACHER.WEIGHTS == str(average)
    assert plain.MODEL.BACKBONE_WEIGHTS == dpk.MODEL.BACKBONE_WEIGHTS == str(average)


def test_the_teacher_is_trained_and_built_with_its_opts_but_not_with_the_common_ones(
    write, at_root, tmp_path
):
    opts = {"MODEL.FPN.NORM": "GN", "MODEL.SMALL_RESNET.WIDTHS": [8, 8, 8], "SOLVER.BASE_LR": 1e-4}
    path = write(
        teachers={"big": {"config": "configs/shapes/teacher.yaml", "opts": opts, "seed": 5}}
    )
    todo = plan(read_suite(path), tmp_path)
    trained, student = cfg_of(todo.teachers["big"]), cfg_of(todo.methods["dpk"][1])
    built = load_teacher_config(student.DISTILL.TEACHER.CONFIG_FILE, student.DISTILL.TEACHER.OPTS)
    for cfg in (trained, built):
        assert cfg.MODEL.SMALL_RESNET.WIDTHS == [8, 8, 8]
        assert cfg.MODEL.FPN.NORM == "GN"
        assert cfg.SOLVER.BASE_LR == 1e-4
    assert trained.SEED == 5
    assert trained.SOLVER.MAX_ITER == 1200


@pytest.mark.parametrize(("weights", "after"), [("x.pth", ()), ("", ()), (None, ("big",))])
def test_a_teacher_with_weights_is_not_trained(write, tmp_path, weights, after):
    path = write(teachers={"big": {"config": MODEL_ZOO, "weights": weights}})
    todo = plan(read_suite(path), tmp_path)
    run = todo.methods["dpk"][1]
    assert run.after == after
    assert set(todo.teachers) == set(after)
    given = run.opts[run.opts.index("DISTILL.TEACHER.WEIGHTS") + 1]
    assert given == (str(tmp_path / "big/model_final.pth") if weights is None else weights)


def test_all_students_start_with_the_backbone_of_the_training_named_start(write, tmp_path):
    teachers = {
        "big": {"config": "configs/shapes/teacher.yaml"},
        "small": {"config": "configs/shapes/plain.yaml", "seed": 9},
    }
    todo = plan(read_suite(write(teachers=teachers, start="small")), tmp_path, only=["plain"])
    run = todo.methods["plain"][2]
    assert run.after == ("small",)
    assert set(todo.teachers) == {"small"}  # although plain learns from none
    weights = str(tmp_path / "small" / "model_final.pth")
    assert cfg_of(run).MODEL.BACKBONE_WEIGHTS == weights
    todo = plan(read_suite(write(teachers=teachers, start="small")), tmp_path)
    assert todo.methods["dpk"][1].after == ("small", "big")
    assert all("MODEL.BACKBONE_WEIGHTS" not in run.opts for run in todo.teachers.values())

    teachers["small"]["weights"] = "start.pth"
    todo = plan(read_suite(write(teachers=teachers, start="small")), tmp_path)
    assert todo.methods["plain"][1].after == ()
    assert cfg_of(todo.methods["plain"][1]).MODEL.BACKBONE_WEIGHTS == "start.pth"


def test_values_come_out_of_the_config_as_they_went_into_the_suite():
    values = {
        "SOLVER.BASE_LR": 0.5,
        "SOLVER.MAX_ITER": 7,
        "SOLVER.STEPS": [1, 2],
        "DISTILL.INHERIT": True,
        "DISTILL.DPK.RATIO": "fixed",
        "DISTILL.LEVELS": ["p2", "p3"],
        "DISTILL.TEACHER.OPTS": ["MODEL.WEIGHTS", 'it\'s "quoted"'],
        "SOLVER.WEIGHT_DECAY": "1e-4",  # which YAML takes for a text
    }
    cfg = load_config("", overrides(values))
    assert cfg.SOLVER.WEIGHT_DECAY == 1e-4
    assert cfg.SOLVER.STEPS == (1, 2)
    assert cfg.DISTILL.INHERIT is True
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER) == (0.5, 7)
    assert (cfg.DISTILL.DPK.RATIO, cfg.DISTILL.LEVELS) == ("fixed", ["p2", "p3"])
    assert cfg.DISTILL.TEACHER.OPTS == values["DISTILL.TEACHER.OPTS"]


def test_teachers_are_started_first_then_who_waits_for_none_then_seed_by_seed(write, tmp_path):
    todo = plan(read_suite(write()), tmp_path)
    assert [run.name for run in todo.runs] == [
        "big",
        "plain-seed1",
        "plain-seed2",
        "inherit-seed1",
        "dpk-seed1",
        "inherit-seed2",
        "dpk-seed2",
    ]
    assert {run.name: run.after for run in todo.runs}["dpk-seed2"] == ("big",)


def test_only_restricts_to_methods_and_the_teachers_they_need(write, tmp_path):
    suite = read_suite(write())
    plans = [plan(suite, tmp_path, [3], only) for only in (["plain"], ["dpk"])]
    names = [[run.name for run in todo.runs] for todo in plans]
    assert names == [["plain-seed3"], ["big", "dpk-seed3"]]


def test_defaults(write):
    suite = read_suite(write(seeds=None, common=None))
    assert (suite.seeds, suite.title, suite.description) == ((1,), "suite", "")
    assert (suite.metric, suite.secondary) == ("bbox/AP", "bbox/AP50")
    assert read_suite(write(metric="segm/AP")).secondary == "segm/AP50"
    assert read_suite(write(metric="classification/top1")).secondary is None
    baselines = {name: method.baseline for name, method in suite.methods.items()}
    assert baselines == {"plain": None, "inherit": "plain", "dpk": "inherit"}


def test_by_default_nothing_is_measured_in_a_circle(write):
    methods = {
        "plain": {**PLAIN, "baseline": "kd"},
        "kd": {**PLAIN, "title": "KD"},
        "dpk": {**PLAIN, "title": "DPK"},
    }
    suite = read_suite(write(methods=methods))
    baselines = {name: method.baseline for name, method in suite.methods.items()}
    assert baselines == {"plain": "kd", "kd": None, "dpk": "plain"}


# ------------------------------------------------------------------ modules of one's own


def test_the_modules_of_a_suite_are_known_to_its_checks_and_to_all_its_runs(
    write, at_root, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "a_suites_keys.py").write_text("def add_config(cfg):\n    cfg.OWN_KEY = 1\n")
    config = tmp_path / "own.yaml"
    config.write_text(f"_BASE_: {ROOT}/configs/shapes/teacher.yaml\nOWN_KEY: 2\n")
    changed = {
        "imports": ["a_suites_keys"],
        "common": {"OWN_KEY": 3},
        "teachers": {"big": {"config": str(config)}},
    }
    todo = plan(read_suite(write(**changed)), tmp_path / "runs")
    configs = load_configs(todo, trains=False)
    assert {name: cfg.OWN_KEY for name, cfg in configs.items()} == {
        "big": 2,
        "inherit": 3,
        "plain": 3,
        "dpk": 3,
    }
    for run in todo.runs:
        assert cfg_of(run).IMPORTS == ["a_suites_keys"]
    # a student's teacher is built as it was trained
    node = cfg_of(todo.methods["dpk"][1]).DISTILL.TEACHER
    assert load_teacher_config(node.CONFIG_FILE, node.OPTS).OWN_KEY == 2

    changed["teachers"]["big"]["weights"] = "given.pth"
    todo = plan(read_suite(write(**changed)), tmp_path / "runs")
    assert cfg_of(todo.evaluations["big"]).IMPORTS == ["a_suites_keys"]


def test_without_modules_nothing_is_said_of_them(write, tmp_path):
    todo = plan(read_suite(write(imports=[])), tmp_path)
    assert all("IMPORTS" not in run.opts for run in todo.runs)


# ------------------------------------------------------------------ mistakes

PLAIN = {"config": "configs/shapes/plain.yaml"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"metod": {}}, r"no key in .*suite\.yaml named 'metod': did you mean 'methods'\?"),
        ({"methods": None}, r"suite\.yaml lacks the key methods: add it"),
        ({"methods": {}}, r"methods of .*suite\.yaml is empty"),
        ({"methods": {"plain": {}}}, r"methods\.plain of .* lacks the key config: add it"),
        (
            {"methods": {"plain": {**PLAIN, "techer": "big"}}},
            r"no key in methods\.plain of .* named 'techer': did you mean 'teacher'\?",
        ),
        (
            {"methods": {"plain": {**PLAIN, "teacher": "bigg"}}},
            r"no teacher for methods\.plain of .* named 'bigg': did you mean 'big'\?",
        ),
        (
            {"methods": {"plain": PLAIN, "x": {**PLAIN, "baseline": "plane"}}},
            r"no baseline for methods\.x of .* named 'plane': did you mean 'plain'\?",
        ),
        ({"baseline": "plane"}, r"named 'plane': did you mean 'plain'\?"),
        (
            {"methods": {"plain": {**PLAIN, "baseline": "plain"}}},
            r"baselines in .* go round in a circle \(plain over plain\)",
        ),
        ({"methods": {"plain": "x.yaml"}}, r"methods\.plain of .* must hold KEY: VALUE lines"),
        ({"methods": {"plain": {"config": 3}}}, r"methods\.plain\.config of .* is 3: write a text"),
        (
            {"methods": {"plain": {"config": ""}}},
            r"methods\.plain\.config of .* is '': write a text",
        ),
        ({"methods": {"plain": None}}, r"methods\.plain of .* must hold KEY: VALUE lines"),
        ({"methods": []}, r"methods of .* must hold KEY: VALUE lines, and holds \[\]"),
        ({"methods": {"plain": {**PLAIN, "name": "x"}}}, r"no key in methods\.plain of .* 'name'"),
        ({"path": "x"}, r"no key in .*suite\.yaml named 'path'"),
        ({"methods": {"a/b": PLAIN}}, r"methods of .* holds the name 'a/b'"),
        ({"methods": {"a" * 101: PLAIN}}, r"methods of .* holds the name 'a"),
        ({"methods": {"": PLAIN}}, r"methods of .* holds the name ''"),
        ({"methods": {2: PLAIN}}, r"methods of .* holds the name 2"),
        ({"methods": {True: PLAIN}}, r"methods of .* holds the name True"),
        ({"methods": {"big": PLAIN, "plain": {**PLAIN}}}, r"big of .* both a teacher and a method"),
        (
            {"methods": {"plain": {**PLAIN, "title": "big"}}},
            r"The title 'big' stands twice in .*suite\.yaml",
        ),
        (
            {
                "methods": {
                    "plain": PLAIN,
                    "a": {**PLAIN, "baseline": "b"},
                    "b": {**PLAIN, "baseline": "c"},
                    "c": {**PLAIN, "baseline": "b"},
                }
            },
            r"baselines in .*suite\.yaml go round in a circle \(b over c over b\): give one",
        ),
        (
            {"teachers": {"plain-seed2": PLAIN}, "methods": {"plain": PLAIN}},
            r"plain-seed2 of .* both a teacher and a method",
        ),
        ({"title": ["a"]}, r"title of .*suite\.yaml is \['a'\]: write a text"),
        ({"title": " "}, r"title of .*suite\.yaml is '': write a text of one line"),
        ({"title": "x" * 501}, r"title of .* is 'xxx.*: write a text of one line"),
        (
            {"methods": {"plain": {"config": "a\nb"}}},
            r"plain\.config of .* is 'a.*: write a text of",
        ),
        (
            {"teachers": {"big": {**PLAIN, "weights": "\0"}}},
            r"big\.weights of .* is '.*: write a text",
        ),
        ({"description": 3}, r"description of .* is 3: write a text"),
        ({"metric": 3}, r"metric of .* is 3: write a text"),
        ({"metric": ["bbox/AP"]}, r"metric of .* is \['bbox/AP'\]: write a text"),
        ({"secondary": {}}, r"secondary of .* is {}: write a text"),
        ({"baseline": ["plain"]}, r"baseline of .* is \['plain'\]: write a text"),
        ({"start": 1.5}, r"start of .* is 1\.5: write a text"),
        (
            {"teachers": {"big": {**PLAIN, "seed": "1"}}},
            r"teachers\.big\.seed of .* is '1': wri",
        ),
        ({"teachers": {"big": {**PLAIN, "seed": 2**40}}}, r"teachers\.big\.seed of .* is 1099511"),
        (
            {"teachers": {"big": {**PLAIN, "weights": 3}}},
            r"teachers\.big\.weights of .* is 3: wr",
        ),
        (
            {"methods": {"plain": {**PLAIN, "opts": [1]}}},
            r"opts of methods\.plain of .* must hold",
        ),
        ({"common": {"SEED": 3}}, r"SEED cannot be set in common of .*: use seeds"),
        ({"common": {"SOLVER": {"MAX_ITER": 3}}}, r"SOLVER in common of .* holds further keys"),
        ({"common": {3: 3}}, r"common of .* holds the key 3: write config keys"),
        ({"common": {"SOLVER.MAX_ITER": None}}, r"SOLVER\.MAX_ITER in common of .* is None: write"),
        ({"common": {"SOLVER.STEPS": [{}]}}, r"SOLVER\.STEPS in common of .* is \[{}\]: write"),
        ({"common": {"SOLVER.BASE_LR": float("nan")}}, r"suite\.yaml holds the number nan: write"),
        (
            {
                "methods": {
                    "plain": {
                        **PLAIN,
                        "teacher": "big",
                        "opts": {"DISTILL.TEACHER.WEIGHTS": "x.pth"},
                    }
                }
            },
            r"methods\.plain of .* sets DISTILL\.TEACHER\.WEIGHTS, as its teacher does",
        ),
        ({"start": "bigg"}, r"no start for .* named 'bigg': did you mean 'big'"),
        (
            {"start": "big", "common": {"MODEL.BACKBONE_WEIGHTS": "x.pth"}},
            r"sets MODEL\.BACKBONE_WEIGHTS, as the suite's start does",
        ),
        (
            {"imports": ["gone"]},
            r"^imports of .*suite\.yaml names the module gone, which is neither",
        ),
        ({"imports": "json"}, r"imports of .*suite\.yaml is 'json': write a list of modules"),
        ({"imports": [3]}, r"imports of .*suite\.yaml is \[3\]: write a list of names"),
        ({"imports": ["json"] * 2}, r"imports of .*suite\.yaml names json twice"),
        ({"common": {"IMPORTS": ["json"]}}, r"IMPORTS cannot be set in common of .*: use imports"),
        ({"seeds": 3}, r"seeds of .* is 3: write different whole numbers"),
        ({"seeds": [1, 1]}, r"seeds of .* is \[1, 1\]"),
        ({"seeds": [-1]}, r"seeds of .* is \[-1\]"),
        ({"seeds": [True]}, r"seeds of .* is \[True\]"),
        ({"seeds": []}, r"seeds of .* is \[\]"),
        ({"seeds": [1.0]}, r"seeds of .* is \[1\.0\]"),
        ({"seeds": [2**31]}, r"seeds of .* is \[2147483648\]"),
        ({"seeds": {"a": 1}}, r"seeds of .* is {'a': 1}"),
    ],
)
def test_a_mistake_is_told_by_file_and_key(write, changed, message):
    with pytest.raises(UserError, match=message):
        read_suite(write(**changed))


@pytest.mark.parametrize("text", ["- a", "", "3"])
def test_a_file_that_holds_no_mapping_is_refused(tmp_path, text):
    path = tmp_path / "suite.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"suite\.yaml must hold KEY: VALUE lines"):
        read_suite(path)


def test_an_absent_suite_is_named(tmp_path):
    for path in (tmp_path / "gone.yaml", Path("x" * 5000)):
        with pytest.raises(UserError, match=r"There is no suite .*: give a path to one"):
            read_suite(path)


def test_an_unknown_method_to_restrict_to_is_answered_with_the_nearest(write, tmp_path):
    with pytest.raises(UserError, match="no method in .* named 'dkp': did you mean 'dpk'?"):
        plan(read_suite(write()), tmp_path, only=["dkp"])


def test_seeds_of_the_command_line_are_checked(write, tmp_path):
    with pytest.raises(UserError, match=r"The value of --seeds is \[1, 1\]"):
        plan(read_suite(write()), tmp_path, [1, 1])


def test_seeds_of_the_command_line_give_no_teachers_folder(write, tmp_path):
    suite = read_suite(write(teachers={"big": PLAIN, "plain-seed7": PLAIN}))
    with pytest.raises(UserError, match="plain-seed7 of .* names both a teacher and a method"):
        plan(suite, tmp_path, [7])


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/b.yaml", "b"),
        ("a/suite.yaml", "a"),
        ("./a/../c/suite.yaml", "c"),
        ("suites.yaml", "suites"),
    ],
)
def test_outputs_are_named_after_the_file_or_after_its_folder(path, name):
    assert suite_name(Path(path)) == name


def test_a_config_is_told_from_a_suite(tiny):
    with pytest.raises(UserError, match="dpk.yaml is the config of one training, no suite"):
        read_suite(tiny.dpk)
