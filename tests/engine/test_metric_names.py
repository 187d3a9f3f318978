"""Which figures an evaluation will give; test_evaluators.py compares with those it gives."""

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation.testing import flatten_results_dict

from dpk_det.engine.metric_names import check_metric, metric_names
from dpk_det.errors import UserError


@pytest.fixture
def registered():
    """Registers datasets of an evaluator type, and puts the catalogs back."""
    before = dict(DatasetCatalog.data), dict(MetadataCatalog.data)

    def register(name, kind, **metadata):
        DatasetCatalog.register(name, list)
        MetadataCatalog.get(name).set(evaluator_type=kind, **metadata)

    yield register
    DatasetCatalog.data, MetadataCatalog.data = before


@pytest.mark.parametrize("which", ["tiny", "tiny_images"])
def test_the_names_are_those_that_a_training_leaves(which, request):
    experiment = request.getfixturevalue(which)
    folder = request.getfixturevalue({"tiny": "trained"}.get(which, "distilled_images"))
    results = json.loads((folder / "results.json").read_text())["results"]
    assert set(metric_names(experiment.cfg("dpk"))) == set(flatten_results_dict(results))


def test_two_datasets_are_told_apart(tiny, registered):
    registered("other", "coco", thing_classes=["square", "disc"])
    cfg = tiny.cfg("plain", "DATASETS.TEST", "('tiny', 'other')")
    assert {"tiny/bbox/AP", "other/bbox/AP50", "other/bbox/AP-disc"} <= set(metric_names(cfg))
    check_metric(cfg, "other/bbox/AP", "methods.plain")
    with pytest.raises(
        UserError,
        match="The metric bbox/AP does not say which figure of methods.plain is meant: write "
        "tiny/bbox/AP or other/bbox/AP.",
    ):
        check_metric(cfg, "bbox/AP", "methods.plain")
    twice = tiny.cfg("plain", "DATASETS.TEST", "('tiny', 'tiny')")
    check_metric(twice, "bbox/AP", "methods.plain")


@pytest.mark.parametrize(
    ("opts", "metric", "message"),
    [
        ((), "bbox/APP", r"no metric of methods\.plain named 'bbox/APP': did you mean 'bbox/AP'\?"),
        ((), "segm/AP", r"no metric of methods\.plain named 'segm/AP': choose from bbox/AP, "),
        ((), "AP", r"AP does not say which figure of methods\.plain is meant: write bbox/AP\."),
        ((), "bbox/AP-disk", r"named 'bbox/AP-disk': did you mean 'bbox/AP-disc'\?"),
        ((), "speed", r"named 'speed': choose from bbox/AP, bbox/AP50, bbox/AP75, bbox/APl, bbo"),
        (("DATASETS.TEST", "()"), "bbox/AP", r"methods\.plain is evaluated on no dataset, so"),
    ],
)
def test_a_metric_that_will_not_be_measured_is_refused(tiny, trained, opts, metric, message):
    with pytest.raises(UserError, match=message):
        check_metric(tiny.cfg("plain", *opts), metric, "methods.plain")


@pytest.mark.parametrize(
    ("kind", "opts", "expected"),
    [
        ("coco", {"MODEL.MASK_ON": True}, "segm/APl"),
        ("coco", {"MODEL.KEYPOINT_ON": True}, "keypoints/APm"),
        ("coco", {"MODEL.META_ARCHITECTURE": "RetinaNet", "MODEL.MASK_ON": True}, "bbox/AP"),
        ("coco", {"MODEL.META_ARCHITECTURE": "ProposalNetwork"}, "box_proposals/ARs@1000"),
        ("lvis", {}, "bbox/APr"),
        ("pascal_voc", {}, "bbox/AP75"),
        ("sem_seg", {"MODEL.META_ARCHITECTURE": "SemanticSegmentor"}, "sem_seg/IoU-grass"),
    ],
)
def test_what_is_measured_follows_from_dataset_and_model(tiny, registered, kind, opts, expected):
    registered("it", kind, thing_classes=["a", "b"], stuff_classes=["grass", "sky"])
    pairs = [x for pair in opts.items() for x in pair]
    names = metric_names(tiny.cfg("plain", "DATASETS.TEST", "('it',)", *pairs))
    assert expected in names
    assert ("segm/AP" in names) == (expected == "segm/APl")


def test_of_an_evaluator_of_ones_own_nothing_is_known(tiny, registered):
    registered("it", "stereo")
    cfg = tiny.cfg("plain", "DATASETS.TEST", "('it',)")
    assert metric_names(cfg) is None
    check_metric(cfg, "depth/error", "methods.plain")
    assert metric_names(tiny.cfg("plain", "DATASETS.TEST", "('gone',)")) is None
