"""The names of the figures that an evaluation will give, known before the training."""

from collections.abc import Iterator, Sequence
from importlib.util import find_spec

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from dpk_det.architectures import classifies, plain_architecture
from dpk_det.errors import UserError, find

# The figures that Detectron2's evaluators give for each task, without those of single classes.
_BOXES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_KEYPOINTS = ("AP", "AP50", "AP75", "APm", "APl")
_LVIS = (*_BOXES, "APr", "APc", "APf")
_PROPOSALS = tuple(f"AR{size}@{limit}" for limit in (100, 1000) for size in ("", "s", "m", "l"))
_PIXELS = ("mIoU", "fwIoU", "mACC", "pACC")
_PANOPTIC = tuple(f"{what}{part}" for what in ("PQ", "SQ", "RQ") for part in ("", "_th", "_st"))


def metric_names(cfg: CfgNode) -> list[str] | None:
    """Return the figures that the evaluation of a config gives, such as ``bbox/AP``, ``cls/top1``.

    If ``DATASETS.TEST`` has two or more datasets, each figure starts with the dataset's name.

    Returns:
        The names. None if they are not known: a dataset is not registered, or no figures are known
        for the model and the dataset's ``evaluator_type``.
    """
    datasets = list(dict.fromkeys(cfg.DATASETS.TEST))
    names = []
    for dataset in datasets:
        if dataset not in DatasetCatalog:
            return None
        found = list(_of_dataset(cfg, dataset))
        if not found:
            return None
        names += [f"{dataset}/{name}" for name in found] if len(datasets) > 1 else found
    return names


def check_metric(cfg: CfgNode, metric: str, where: str) -> None:
    """Check that the evaluation of a config gives a metric.

    Args:
        cfg: a config with registered datasets.
        metric: the metric's name, such as "bbox/AP".
        where: the origin of the config, for errors.

    Raises:
        UserError: when the evaluation does not give the metric (the error names the nearest), when
            there is no dataset to evaluate, or when several datasets give the metric.
    """
    names = metric_names(cfg)
    if names is None or metric in names:
        return
    if not names:
        raise UserError(
            f"{where} is evaluated on no dataset, so {metric} cannot be compared: name one in "
            "DATASETS.TEST."
        )
    if meant := [name for name in names if name.endswith(f"/{metric}")]:
        raise UserError(
            f"The metric {metric} does not say which figure of {where} is meant: write "
            f"{' or '.join(meant)}."
        )
    if "-" not in metric:  # no class is meant, so leave out the classes: they may be hundreds
        names = [name for name in names if "-" not in name.rpartition("/")[2]]
    find(dict.fromkeys(names), metric, f"metric of {where}")


def _of_dataset(cfg: CfgNode, dataset: str) -> Iterator[str]:
    metadata = MetadataCatalog.get(dataset)
    kind = metadata.get("evaluator_type")
    plain = plain_architecture(cfg).MODEL.META_ARCHITECTURE
    things = list(metadata.get("thing_classes") or ())
    if kind == "classification" and classifies(cfg):
        classes = DatasetCatalog.get(dataset).classes
        yield from ("cls/top1", "cls/top5", *(f"cls/top1-{name}" for name in classes))
    if kind == "pascal_voc":
        yield from (f"bbox/{name}" for name in ("AP", "AP50", "AP75"))
    if kind == "lvis":
        yield from (f"{task}/{name}" for task in _tasks(cfg, plain) for name in _LVIS)
    if kind in ("coco", "coco_panoptic_seg"):
        if plain == "ProposalNetwork":
            yield from (f"box_proposals/{name}" for name in _PROPOSALS)
        for task in _tasks(cfg, plain):
            yield from (f"{task}/{x}" for x in (_KEYPOINTS if task == "keypoints" else _BOXES))
            if len(things) > 1:
                yield from (f"{task}/AP-{name}" for name in things)
    if kind in ("sem_seg", "coco_panoptic_seg") and plain.endswith(("PanopticFPN", "Segmentor")):
        stuff = metadata.get("stuff_classes") or ()
        yield from (f"sem_seg/{name}" for name in _PIXELS)
        yield from (f"sem_seg/{what}-{name}" for what in ("IoU", "ACC") for name in stuff)
    if kind == "coco_panoptic_seg" and plain.endswith("PanopticFPN") and find_spec("panopticapi"):
        yield from (f"panoptic_seg/{name}" for name in _PANOPTIC)


def _tasks(cfg: CfgNode, plain: str) -> Sequence[str]:
    if plain.endswith(("ProposalNetwork", "Segmentor")):
        return ()
    tasks = ["bbox"]
    if plain.endswith(("RCNN", "PanopticFPN")):  # other models have no heads for these tasks
        tasks += ["segm"] * cfg.MODEL.MASK_ON + ["keypoints"] * cfg.MODEL.KEYPOINT_ON
    return tasks
