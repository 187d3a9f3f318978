"""The benchmark of a step, on the tiny detectors: it measures what it says it does."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.modeling.backbone.resnet import BottleneckBlock, ResNet
from fvcore.nn import FlopCountAnalysis
from measure import Times, count_syncs
from step import count_tokens, image_size, measure, parse_args, summarise, sweep
from variants import (
    Floor,
    Stepper,
    calm,
    load_also,
    make_batch,
    make_steppers,
    make_student,
    make_teacher,
    read_config,
)

import dpk_det
from dpk_det.distill import DPK
from dpk_det.distill.registry import DISTILLERS
from dpk_det.errors import UserError

SIZE = (64, 96)


@pytest.fixture
def run(tiny, tmp_path):
    """``run(option, ...)``: the command on the tiny experiment; what it printed and its JSON."""

    def run(*argv):
        said, path = [], tmp_path / "figures.json"
        base = ["--config-file", str(tiny.dpk), "--batch", "2", "--repeats", "2", "--warmup", "0"]
        args = parse_args([*base, "--size", "64x96", "--json", str(path), *map(str, argv)])
        measure(args, said.append)
        return "\n".join(said), json.loads(path.read_text())

    return run


@pytest.fixture
def setting(tiny):
    """Config and batch."""
    cfg = read_config(str(tiny.dpk), [])
    return cfg, make_batch(cfg, 2, SIZE, padded=False)


def test_all_methods_are_measured_beside_plain_and_floor(run):
    said, figures = run()
    (run,) = figures["runs"]
    assert set(run["variants"]) == {"plain", "floor", *DISTILLERS}
    assert not run["skipped"]
    assert figures["machine"]["threads"] == torch.get_num_threads()
    assert (run["precision"], run["images"], run["size"]) == ("fp32", 2, "64 x 96")
    for name, x in run["variants"].items():
        assert 0 < x["seconds"]["q1"] <= x["seconds"]["median"] <= x["seconds"]["q3"]
        assert x["images_a_second"] == pytest.approx(2 / x["seconds"]["median"])
        assert x["cpu_seconds"]["median"] > 0
        assert f"| {name} " in said
    peaks = {name: x["peak_mb"] for name, x in run["variants"].items()}
    assert peaks["plain"] < peaks["floor"] < peaks["dpk"]


def test_precisions_and_batches_follow_one_another(run):
    _, figures = run(
        "--methods", "dpk", "--batch", 1, 2, "--precision", "fp32", "bf16", "--repeats", 1
    )
    runs = [(x["precision"], x["images"]) for x in figures["runs"]]
    assert runs == [("fp32", 1), ("fp32", 2), ("bf16", 1), ("bf16", 2)]


@pytest.mark.parametrize(
    ("quantity", "read"),
    [
        ("area", lambda cfg, images, size: size),
        ("batch", lambda cfg, images, size: images),
        ("tokens", lambda cfg, images, size: cfg.DISTILL.DPK.TOKEN_STRIDE),
        ("depth", lambda cfg, images, size: cfg.DISTILL.DPK.ENCODER_DEPTH),
    ],
)
def test_a_sweep_changes_one_quantity(setting, quantity, read):
    cfg, _ = setting
    expected = {
        "area": [(32, 48), (48, 64), (64, 96), (96, 128)],
        "batch": [1, 2, 4, 8],
        "tokens": [32, 16, 8, 4],
        "depth": [1, 2, 4, 8],
    }[quantity]
    settings = list(sweep(quantity, cfg, 2, SIZE))
    assert [read(*x) for _, *x in settings] == expected
    fixed = {"images": {x[2] for x in settings}, "size": {x[3] for x in settings}}
    assert fixed["images"] == {2} or quantity == "batch"
    assert fixed["size"] == {SIZE} or quantity == "area"
    depths = {x[1].DISTILL.DPK.DECODER_DEPTH for x in settings}
    assert depths == ({1, 2, 4, 8} if quantity == "depth" else {1})
    assert cfg.DISTILL.DPK.ENCODER_DEPTH is None and cfg.DISTILL.DPK.TOKEN_STRIDE == 16


def test_a_sweep_reports_a_row_a_value(run):
    said, figures = run("--sweep", "tokens", "--repeats", 1)
    assert [x["value"] for x in figures["runs"]] == ["32", "16", "8", "4"]
    assert [x["tokens"] for x in figures["runs"]] == [18, 72, 216, 504]
    assert all(set(x["variants"]) == {"plain", "floor", "dpk"} for x in figures["runs"])
    for x in figures["runs"]:
        dpk = x["variants"]["dpk"]
        line = next(y for y in said.splitlines() if y.startswith(f"| {x['value']} "))
        cells = [y.strip() for y in line.strip("|").split("|")]
        assert cells[1] == str(x["tokens"])
        assert cells[4] == f"{1e3 * dpk['seconds']['median']:.1f}"
        assert cells[5] == f"{dpk['to_floor']['median']:.3f}"
        floor = x["variants"]["floor"]
        assert cells[6] == f"{dpk['gflop'] / floor['gflop']:.3f}"
        assert cells[7:] == [f"{dpk['peak_mb']:.0f}", f"{dpk['peak_mb'] / floor['peak_mb']:.3f}"]


def test_a_sweep_of_forms_turns_on_what_is_cheaper_one_by_one_and_together(setting):
    cfg, _ = setting

    def form(cfg):
        dpk = DPK.settle({key.lower(): value for key, value in cfg.DISTILL.DPK.items()})
        return dpk["grouped"], dpk["cka_every"], dpk["encoder_depth"]

    forms = {name: form(changed) for name, changed, *_ in sweep("form", cfg, 2, SIZE)}
    assert forms == {
        "none of these": (False, 1, 1),
        "GROUPED: True": (True, 1, 1),
        "CKA_EVERY: 4": (False, 4, 1),
        "ENCODER_DEPTH: 0": (False, 1, 0),
        "all of these": (True, 4, 0),
    }
    assert form(cfg) == forms["all of these"]  # the defaults


def test_waits_are_listed_by_place_and_a_trace_is_written(run, tmp_path):
    said, figures = run("--syncs", "--trace", tmp_path / "trace.json", "--repeats", 1)
    syncs = figures["runs"][0]["syncs"]
    assert set(syncs) == {"plain", "floor", "dpk"}
    of_dpk = {place for place in syncs["dpk"] if place.startswith("dpk_det/")}
    assert of_dpk and not of_dpk & set(syncs["floor"])
    assert all(place in said for place in of_dpk)
    assert "scaled_dot_product_attention" in (tmp_path / "trace.json").read_text()


def test_operators_are_listed_by_what_dpk_adds_to_the_floor(run):
    said, figures = run("--operators", "--repeats", 1)
    operators = figures["runs"][0]["operators"]
    attention = "aten::scaled_dot_product_attention"
    assert attention not in operators["floor"] and operators["dpk"][attention][1] == 3
    convolutions = [operators[name]["aten::mkldnn_convolution"][1] for name in ("floor", "dpk")]
    assert convolutions[0] > 0
    table = [line.split("|")[1:-1] for line in said.splitlines() if line.startswith("|")]
    added = {name.strip(): (float(ms), float(calls)) for name, ms, calls in table[-21:]}
    assert len(added) == 21
    times = [ms for ms, _ in added.values()]
    assert times[:-1] == sorted(times[:-1], reverse=True)
    calls = [sum(calls for _, calls in operators[name].values()) for name in ("floor", "dpk")]
    assert added["all"][1] == pytest.approx(calls[1] - calls[0], abs=0.6)


def test_the_floors_arithmetic_is_the_students_and_the_teachers_forward(run, setting):
    said, figures = run("--methods", "dpk")
    gflop = {name: x["gflop"] for name, x in figures["runs"][0]["variants"].items()}
    teacher, images = make_teacher(setting[0]).model.backbone, torch.zeros(2, 3, *SIZE)
    by_hand = FlopCountAnalysis(teacher, images).by_operator()["conv"]  # multiply-adds
    assert gflop["floor"] - gflop["plain"] == pytest.approx(2 * by_hand / 1e9)
    assert gflop["dpk"] > gflop["floor"]
    assert f"| {gflop['dpk'] / gflop['floor']:.3f} " in said


def test_dpk_reads_nothing_but_what_was_sent_to_the_host_a_step_ago(setting):
    steppers, _ = make_steppers(setting[0], ["dpk"], setting[1], "fp32", {})
    stepper = steppers["dpk"]
    stepper()  # the first one knows no gap but its own
    counts = count_syncs(stepper, "cpu")
    own = {place: n for place, n in counts.items() if place.startswith("dpk_det/")}
    assert list(own.values()) == [1, 1]  # the gap, and the metrics to be logged
    package = Path(dpk_det.__file__).parent.parent
    for place in own:
        name, number = place.split(":")
        line = (package / name).read_text().splitlines()[int(number) - 1]
        assert "before()" in line or "read()" in line, line


def test_a_step_is_the_one_that_training_takes(setting, tiny):
    """The weights after a step are those that SGD gives by hand."""
    cfg, batch = setting
    cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.MOMENTUM = 0.01, 0.0, 0.0
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.0
    model, twin = make_student(cfg), make_student(cfg).train()
    stepper = Stepper(cfg, model, batch)
    torch.manual_seed(5)
    stepper()
    torch.manual_seed(5)
    with stepper.storage:
        sum(twin(batch).values()).backward()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q - 0.01 * q.grad)
    assert "total_loss" in stepper.storage.latest()


def test_variants_start_alike_and_only_the_teacher_is_added(setting):
    cfg, batch = setting
    steppers, _ = make_steppers(cfg, ["dpk", "cwd"], batch, "fp32", {})
    weights = make_student(cfg).state_dict()
    floor = steppers["floor"].model
    assert isinstance(floor, Floor)
    for model in (steppers["plain"].model, floor.model, steppers["dpk"].model):
        for name, value in model.state_dict().items():
            if not name.startswith("distiller."):
                # within the little that the trial step of a method has changed
                torch.testing.assert_close(value, weights[name], atol=1e-3, rtol=0)
    assert steppers["dpk"].model.distillation.teacher is floor.teacher
    assert set(steppers["cwd"].model.distiller.methods) == {"cwd"}

    seen = []
    floor.teacher.model.backbone.register_forward_hook(
        lambda module, inputs, maps: seen.append([x.requires_grad for x in maps.values()])
    )
    steppers["plain"]()
    assert not seen
    steppers["floor"]()
    assert seen == [[False] * 5]


def test_a_teacher_without_weights_gets_the_same_random_ones(setting):
    cfg, _ = setting
    cfg.DISTILL.TEACHER.WEIGHTS = ""
    first, second = (make_teacher(cfg).model.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_random_weights_stay_within_half_precision():
    torch.manual_seed(0)
    blocks = ResNet.make_stage(
        BottleneckBlock,
        33,
        in_channels=64,
        out_channels=64,
        bottleneck_channels=16,
        norm="FrozenBN",
    )
    network, x = torch.nn.Sequential(*blocks), 100 * torch.randn(1, 64, 8, 8)
    with torch.no_grad():
        assert network(x).std() > 1e5  # what there is to mend
        calm(network)
        assert 10 < network(x).std() < 1e3


def test_held_memory_counts_teacher_and_momentum(setting):
    cfg, batch = setting
    steppers, _ = make_steppers(cfg, ["dpk"], batch, "fp32", {})
    sizes = {}
    for name, stepper in steppers.items():
        stepper()
        sizes[name] = stepper.held_bytes()
    student = steppers["plain"].model
    learned = sum(p.nbytes for p in student.parameters())
    buffers = sum(b.nbytes for b in student.buffers())
    assert sizes["plain"] == 2 * learned + buffers  # weights and momentum
    teacher = steppers["floor"].model.teacher.model
    theirs = sum(x.nbytes for x in (*teacher.parameters(), *teacher.buffers()))
    assert sizes["floor"] == sizes["plain"] + theirs
    distiller = steppers["dpk"].model.distiller
    added = 2 * sum(p.nbytes for p in distiller.parameters())
    added += sum(b.nbytes for b in distiller.buffers())
    assert sizes["dpk"] == sizes["floor"] + added


def test_ratios_are_taken_round_by_round():
    wall = {"plain": [1.0, 10.0, 1.0], "floor": [2.0, 20.0, 4.0], "dpk": [3.0, 30.0, 5.0]}
    times = {name: [Times(x, 2 * x) for x in values] for name, values in wall.items()}
    flops = dict.fromkeys(wall, 3 * 10**9)
    figures = summarise(times, dict.fromkeys(wall, 2**20), flops, dict.fromkeys(wall, 7), 4)
    assert figures["dpk"]["to_floor"]["median"] == 1.5
    assert figures["dpk"]["to_plain"]["median"] == 3
    assert figures["dpk"]["cpu_to_floor"] == 1.5
    assert figures["dpk"]["seconds"] == {"median": 5, "q1": 4, "q3": 17.5}
    assert figures["dpk"]["images_a_second"] == 0.8
    assert figures["dpk"]["peak_mb"] == 1
    assert figures["dpk"]["gflop"] == 3


def test_a_padded_batch_has_a_narrower_image(setting):
    cfg, _ = setting
    batch = make_batch(cfg, 3, SIZE, padded=True)
    assert [tuple(x["image"].shape[1:]) for x in batch] == [(64, 96), (64, 72), (64, 96)]


def test_tokens_are_counted_as_dpk_makes_them(setting):
    cfg, batch = setting
    steppers, _ = make_steppers(cfg, ["dpk"], batch, "fp32", {})
    model, seen = steppers["dpk"].model, []
    for completion in model.distiller.methods["dpk"].completions.values():
        completion.decoder.register_forward_hook(lambda m, x, out: seen.append(out.shape[1]))
    steppers["dpk"]()
    assert count_tokens(model, SIZE) == sum(seen)


def test_methods_that_the_student_cannot_learn_by_are_left_out_with_the_reason(tiny):
    cfg = read_config(str(tiny.dpk), ["MODEL.ROI_HEADS.NUM_CLASSES", "3"])
    batch = make_batch(cfg, 2, SIZE, padded=False)
    steppers, skipped = make_steppers(cfg, None, batch, "fp32", {})
    assert "dpk" in steppers and "kd" not in steppers
    assert "3 classes" in skipped["kd"]
    with pytest.raises(UserError, match="3 classes"):
        make_steppers(cfg, ["kd"], batch, "fp32", {})


def test_a_file_of_ones_own_adds_variants(run, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from variants import make_student\n"
        "def variants(cfg):\n"
        "    return {'mine': make_student(cfg)}\n"
    )
    _, figures = run("--methods", "dpk", "--also", path)
    variants = figures["runs"][0]["variants"]
    assert set(variants) == {"plain", "floor", "dpk", "mine"}
    assert variants["mine"]["peak_mb"] == pytest.approx(variants["plain"]["peak_mb"], rel=0.05)


@pytest.mark.parametrize(
    ("argv", "match"),
    [
        (["--methods", "dkp"], "did you mean 'dpk'"),
        (["--precision", "fp16"], "fp16 needs a GPU"),
        (["--also", "absent.py"], "absent.py"),
        (["DISTILL.TEACHER.CONFIG_FILE", ""], "CONFIG_FILE is empty"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="there fp16 is no mistake")
def test_a_mistake_is_told(run, argv, match):
    with pytest.raises(UserError, match=match):
        run(*argv)


def test_a_file_without_variants_is_told(setting, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("")
    with pytest.raises(UserError, match="variants"):
        load_also(path, setting[0])


def test_a_size_is_height_and_width():
    assert image_size("800x1333") == (800, 1333)
    with pytest.raises(SystemExit):
        parse_args(["--size", "800"])
