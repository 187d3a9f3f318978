"""Every key that dpk_det adds to Detectron2's config, and errors that name the nearest key."""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg

from dpk_det.errors import UserError

# meta-architecture that distils -> the plain one that it trains
PLAIN = {"DistillRCNN": "GeneralizedRCNN"}


def add_dpk_config(cfg: CN) -> None:
    """Add the keys of dpk_det to a config, in place."""
    # Datasets of one's own, `name: [annotations.json, image folder]` in COCO's format; the names
    # can then stand in DATASETS.TRAIN and .TEST. Relative paths start at the working directory.
    cfg.DATASETS.JSON = CN(new_allowed=True)

    # Stem and residual widths of build_small_resnet_fpn_backbone, and residual blocks a stage.
    cfg.MODEL.SMALL_RESNET = CN()
    cfg.MODEL.SMALL_RESNET.WIDTHS = [16, 32, 64, 128]
    cfg.MODEL.SMALL_RESNET.BLOCKS = [1, 1, 1, 1]

    cfg.DISTILL = CN()
    # Distillation methods, by name; their losses are added up. The node DISTILL.<NAME> holds each
    # one's arguments.
    cfg.DISTILL.METHODS = ["dpk"]
    # The student's feature maps that learn, by name (["p3", "p4"]); none: all that pair by stride.
    cfg.DISTILL.LEVELS = []
    # Start the student's neck, proposal generator and heads from the teacher's weights where names
    # and shapes match (Kang et al. 2021). Works for a plain student too: compare with that one.
    cfg.DISTILL.INHERIT = False

    cfg.DISTILL.TEACHER = CN()
    # The teacher's own config: a path, or a name of Detectron2's model zoo
    # ("COCO-Detection/faster_rcnn_R_101_FPN_3x.yaml").
    cfg.DISTILL.TEACHER.CONFIG_FILE = ""
    # Its weights: a path or URL. "": the zoo's own, or for a path the model_final.pth that training
    # with that config has left in its OUTPUT_DIR.
    cfg.DISTILL.TEACHER.WEIGHTS = ""
    # Overrides of the teacher's config, as on the command line: ["MODEL.ROI_HEADS.NUM_CLASSES", 3].
    cfg.DISTILL.TEACHER.OPTS = []

    cfg.DISTILL.DPK = CN()
    # Weight of loss_dpk in the total loss.
    cfg.DISTILL.DPK.WEIGHT = 1.0
    # Pixels of the image along a token's side. A level of stride s has tokens of
    # max(1, TOKEN_STRIDE // s) cells a side.
    cfg.DISTILL.DPK.TOKEN_STRIDE = 32
    # Width of the transformers: a multiple of 4 and of HEADS.
    cfg.DISTILL.DPK.DIM = 256
    # Attention heads.
    cfg.DISTILL.DPK.HEADS = 8
    # Hidden width of the transformers' MLPs, as a multiple of DIM.
    cfg.DISTILL.DPK.MLP_RATIO = 2.0
    # Transformer blocks of the student's and of the teacher's encoder, and of the decoder. A strong
    # decoder can do the student's work for it.
    cfg.DISTILL.DPK.ENCODER_DEPTH = 1
    cfg.DISTILL.DPK.DECODER_DEPTH = 1
    # Schedule of the prior ratio: "gap" (1 - CKA) or "fixed".
    cfg.DISTILL.DPK.RATIO = "gap"
    # Bounds of the gap schedule.
    cfg.DISTILL.DPK.RATIO_MIN = 0.0
    cfg.DISTILL.DPK.RATIO_MAX = 1.0
    # The ratio of the fixed schedule.
    cfg.DISTILL.DPK.RATIO_FIXED = 0.5
    # Which tokens take the prior: "random".
    cfg.DISTILL.DPK.MASK = "random"
    # What the completed map is compared with: the teacher's map "raw"; "relative", the same with
    # the error over the map's variance; "standard", each channel brought to mean 0, deviation 1.
    cfg.DISTILL.DPK.TARGET = "relative"
    # Add the student's own map to what the transformer makes (not in the paper).
    cfg.DISTILL.DPK.SHORTCUT = True
    # Share of the old average in the running CKA.
    cfg.DISTILL.DPK.CKA_MOMENTUM = 0.98


def load_config(config_file: str, opts: Sequence[str] = ()) -> CN:
    """Read a config file and overrides into Detectron2's defaults plus dpk_det's keys.

    Args:
        config_file: a path, with Detectron2's ``_BASE_`` chains.
        opts: ``[KEY, VALUE, KEY, VALUE, ...]`` as they stand on the command line.

    Raises:
        UserError: when the file is absent or no YAML, a key unknown (naming the nearest one), or a
            value of the wrong type.
    """
    cfg = get_cfg()
    add_dpk_config(cfg)
    if config_file and not Path(config_file).expanduser().is_file():
        raise UserError(f"There is no config file {config_file}: give --config-file a path to one.")
    if len(opts) % 2:
        raise UserError(f"The overrides {list(opts)} are no pairs: write KEY VALUE KEY VALUE ...")
    try:
        if config_file:
            cfg.merge_from_file(str(Path(config_file).expanduser()))
        cfg.merge_from_list(list(opts))
    except (KeyError, AssertionError) as e:
        raise UserError(_explain_key(str(e.args[0] if e.args else e), cfg, opts)) from e
    except (ValueError, TypeError, AttributeError, OSError, yaml.YAMLError) as e:
        reason = " ".join(str(e).split())
        raise UserError(f"The config {config_file} does not fit ({reason}): correct it.") from e
    return cfg


def plain_architecture(cfg: CN) -> CN:
    """A copy of a config whose model does not distil: for evaluation, export and teachers."""
    cfg = cfg.clone()
    cfg.defrost()
    name = cfg.MODEL.META_ARCHITECTURE
    cfg.MODEL.META_ARCHITECTURE = PLAIN.get(name, name)
    return cfg


def method_arguments(cfg: CN) -> dict[str, dict]:
    """The arguments of each of ``DISTILL.METHODS``: its node's keys in lower case."""
    nodes = {key.lower(): node for key, node in cfg.DISTILL.items() if isinstance(node, CN)}
    return {
        name: {key.lower(): value for key, value in nodes.get(name, {}).items()}
        for name in cfg.DISTILL.METHODS
    }


def _explain_key(message: str, cfg: CN, opts: Sequence[str]) -> str:
    # yacs says "Non-existent config key: A.B" of a file and "Non-existent key: A.B" of an override
    key = message.rsplit(":", 1)[-1].strip()
    near = difflib.get_close_matches(key.upper(), list(_keys(cfg)), 1, 0.4)
    where = "on the command line" if key in opts else "in the config file"
    hint = f": did you mean {near[0]}?" if near else ": take it out."
    return f"There is no config key {key} ({where}){hint}"


def _keys(node: CN, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, CN):
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield prefix + key
