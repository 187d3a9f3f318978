"""Every key that dpk_det adds to Detectron2's config, and errors that name the nearest key."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg

from dpk_det.config_check import check_values, flatten
from dpk_det.config_files import read_config_file
from dpk_det.distill import DISTILLERS
from dpk_det.distill.arguments import check_arguments
from dpk_det.errors import REFUSALS, UserError, check_names, find

# meta-architecture that distils -> the plain one that it trains; modeling.register_distilled adds
PLAIN: dict[str, str] = {}


def add_dpk_config(cfg: CN) -> None:
    """Add the keys of dpk_det to a config, in place."""
    # Datasets of one's own, `name: [annotations.json, image folder]` in COCO's format; the names
    # can then stand in DATASETS.TRAIN and .TEST. Relative paths start at the working directory.
    cfg.DATASETS.JSON = CN(new_allowed=True)

    # The same for classifiers, `name: path` of a folder or zip that has a folder a class, or
    # `name: [path, part]` of CIFAR's archive, unpacked or not, where part is train or test.
    cfg.DATASETS.IMAGES = CN(new_allowed=True)

    # What classifiers are given.
    cfg.INPUT.IMAGES = CN()
    # Side in pixels.
    cfg.INPUT.IMAGES.SIZE = 224
    # Decode all images once and keep them, brought to SIZE: for small ones. Training then shifts
    # each by PAD pixels at most, over black. Otherwise they are read by DATALOADER.NUM_WORKERS;
    # training cuts a part of any size and shape out and resizes it (RandomResizedCrop), evaluation
    # brings the shorter side to RESIZE_TEST and takes the middle. INPUT.RANDOM_FLIP holds for both.
    cfg.INPUT.IMAGES.IN_MEMORY = False
    cfg.INPUT.IMAGES.PAD = 4
    cfg.INPUT.IMAGES.RESIZE_TEST = 256
    # Images of a batch in evaluation, of each process.
    cfg.INPUT.IMAGES.BATCH_TEST = 100

    # What an FPN of dpk_det's builders has above IN_FEATURES: "maxpool", one map pooled from its
    # coarsest; "p6p7", two by convolutions from the coarsest map of the network below (RetinaNet);
    # "p6p7_p5", the same from the FPN's own coarsest (FCOS); "none". "": "maxpool" where res5 is
    # the coarsest, else "none". Detectron2's own builders do not read it.
    cfg.MODEL.FPN.TOP_BLOCK = ""

    _add_timm(cfg.MODEL)
    _add_torchvision(cfg.MODEL)

    # ImageClassifier: classes, weight of the cross-entropy, and the share of its target that is
    # spread evenly over the classes.
    cfg.MODEL.CLASSIFIER = CN()
    cfg.MODEL.CLASSIFIER.NUM_CLASSES = 1000
    cfg.MODEL.CLASSIFIER.LOSS_WEIGHT = 1.0
    cfg.MODEL.CLASSIFIER.LABEL_SMOOTHING = 0.0

    # The network of build_cifar_backbone: resnet8, 14, 20, 32, 44, 56, 110, 8x4, 32x4; wrn_16_2,
    # wrn_40_1, wrn_40_2; vgg8, vgg13; mobilenetv2, shufflenetv1, shufflenetv2.
    cfg.MODEL.CIFAR = CN()
    cfg.MODEL.CIFAR.NAME = "resnet20"

    # Weights that only the backbone's bottom-up network starts from, after MODEL.WEIGHTS: another
    # detector's or a classifier's checkpoint, or a file of such a network alone.
    cfg.MODEL.BACKBONE_WEIGHTS = ""

    # Update all weights in one kernel a device: torch's fused optimizer. Read by this project's
    # trainer, not by DistillHook, which takes its trainer's optimizer as it is.
    cfg.SOLVER.FUSED = False

    # Stem and residual widths of build_small_resnet_fpn_backbone, and residual blocks a stage.
    cfg.MODEL.SMALL_RESNET = CN()
    cfg.MODEL.SMALL_RESNET.WIDTHS = [16, 32, 64, 128]
    cfg.MODEL.SMALL_RESNET.BLOCKS = [1, 1, 1, 1]

    _add_fcos(cfg.MODEL)

    cfg.DISTILL = CN()
    # Distillation methods, by name; their losses are added up. The node DISTILL.<NAME> holds each
    # one's arguments.
    cfg.DISTILL.METHODS = ["dpk"]
    # The student's feature maps that learn, by name (["p3", "p4"]); none: all that pair by stride.
    cfg.DISTILL.LEVELS = []
    # Steps over which the losses of all methods rise to their full weight, in equal shares from the
    # first; 0: at once. DKD and ReviewKD are published with it, for classifiers.
    cfg.DISTILL.WARMUP_ITERS = 0
    # Start the student's neck, proposal generator and heads from the teacher's weights where names
    # and shapes match (Kang et al. 2021). Works for a plain student too: compare with that one.
    cfg.DISTILL.INHERIT = False

    cfg.DISTILL.TEACHER = CN()
    # The teacher's own config: a path, or a name of Detectron2's model zoo
    # ("COCO-Detection/faster_rcnn_R_101_FPN_3x.yaml"). A LazyConfig's .py will do as well.
    cfg.DISTILL.TEACHER.CONFIG_FILE = ""
    # Its weights: a path or URL. "": the zoo's own, or for a path the model_final.pth that training
    # with that config has left in its OUTPUT_DIR (train.output_dir).
    cfg.DISTILL.TEACHER.WEIGHTS = ""
    # Overrides of the teacher's config, as on the command line: ["MODEL.ROI_HEADS.NUM_CLASSES", 3],
    # of a LazyConfig ["model.roi_heads.num_classes", 3].
    cfg.DISTILL.TEACHER.OPTS = []
    # What its backbone computes in: "" as the student's does (SOLVER.AMP), "bf16" or "fp16".
    cfg.DISTILL.TEACHER.PRECISION = ""
    # Keep its channels innermost in memory, which convolutions on CPUs, and in 16 bits on GPUs, are
    # faster with. Its features stay the same but for rounding.
    cfg.DISTILL.TEACHER.CHANNELS_LAST = False
    # Run it through torch.compile, which takes a minute or two at the start.
    cfg.DISTILL.TEACHER.COMPILE = False

    _add_dpk(cfg.DISTILL)
    _add_rivals(cfg.DISTILL)


def _add_fcos(node: CN) -> None:
    # FCOS, which Detectron2 has without keys. The defaults are those of its class and of its
    # configs/common/models/fcos.py, where not said otherwise.
    node.FCOS = CN()
    node.FCOS.NUM_CLASSES = 80
    # The backbone's maps that the head reads, finest first; all of one width.
    node.FCOS.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    # Convolutions of the head before its outputs, for classes and for boxes each.
    node.FCOS.NUM_CONVS = 4
    # Their norm: "GN" (as many of 32 groups as divide the width), "" for none, or another that
    # Detectron2 knows.
    node.FCOS.NORM = "GN"
    # What an untrained head gives as probability of an object.
    node.FCOS.PRIOR_PROB = 0.01
    # Cells learn a box that they are this many strides from the centre of, at most.
    node.FCOS.CENTER_SAMPLING_RADIUS = 1.5
    node.FCOS.FOCAL_LOSS_ALPHA = 0.25
    node.FCOS.FOCAL_LOSS_GAMMA = 2.0
    # Least score of a detection: the root of class probability times centerness.
    node.FCOS.SCORE_THRESH_TEST = 0.2
    # Detections of a level that non-maximum suppression is given, and its IoU.
    node.FCOS.TOPK_CANDIDATES_TEST = 1000
    node.FCOS.NMS_THRESH_TEST = 0.6


def _add_dpk(node: CN) -> None:
    node.DPK = CN()
    # Weight of loss_dpk in the total loss.
    node.DPK.WEIGHT = 12.0
    # Each level's weight within it, finest level first ([1.0, 1.0, 0.5]); none: 1 each.
    node.DPK.LEVEL_WEIGHTS = []
    # Pixels of the image along a token's side. A level of stride s has tokens of
    # max(1, TOKEN_STRIDE // s) cells a side.
    node.DPK.TOKEN_STRIDE = 32
    # Embed and expand tokens of k x k cells by convolutions of k groups, with a k-th of the weights
    # and arithmetic.
    node.DPK.GROUPED = True
    # Width of the transformers: a multiple of 4 and of HEADS.
    node.DPK.DIM = 256
    # Attention heads.
    node.DPK.HEADS = 8
    # Hidden width of the transformers' MLPs, as a multiple of DIM.
    node.DPK.MLP_RATIO = 2.0
    # Transformer blocks of the student's and of the teacher's encoder, and of the decoder. A strong
    # decoder can do the student's work for it.
    node.DPK.ENCODER_DEPTH = 1
    node.DPK.DECODER_DEPTH = 1
    # Give the teacher's tokens as prior knowledge. False: learned blanks stand in their place and
    # the student completes itself (the paper's ablation).
    node.DPK.PRIOR = True
    # Schedule of the prior ratio: "gap" (1 - CKA), "fixed", or falling with the training's progress
    # from RATIO_MAX to RATIO_MIN: "linear", "cosine", "exponential".
    node.DPK.RATIO = "gap"
    # Bounds of the schedules.
    node.DPK.RATIO_MIN = 0.0
    node.DPK.RATIO_MAX = 1.0
    # The ratio of the fixed schedule.
    node.DPK.RATIO_FIXED = 0.5
    # Which tokens take the prior: "random", "block" (a square of neighbours), "grid" (an even
    # spread).
    node.DPK.MASK = "random"
    # What the completed map is compared with: the teacher's map "raw"; "relative", the same with
    # the error over the map's variance; "standard", each channel brought to mean 0, deviation 1, as
    # the student's own in the shortcut is. With INHERIT "raw" and LOSS "cwd" did best: inherited
    # heads want the teacher's very scale.
    node.DPK.TARGET = "standard"
    # How the two are compared: "mse", or "cwd", each channel as a distribution over cells (the
    # divergence of CWD), where offsets of channels do not count but peaks do. CWD's weight of 10 is
    # for the sum over levels; here it is the mean: 50 is as much on five.
    node.DPK.LOSS = "mse"
    # The cells whose error counts: "all", or "student", where no prior was given.
    node.DPK.POSITIONS = "all"
    # Add the student's own map to what the transformer makes (not in the paper).
    node.DPK.SHORTCUT = True
    # What a sample of CKA is: "tokens", or "images" (needs 4 images a process).
    node.DPK.CKA_OF = "tokens"
    # Its kernel: "linear", or "rbf" (cost grows with the square of the number of samples).
    node.DPK.CKA_KERNEL = "linear"
    # Steps that the running CKA looks back on; 1: each step stands alone.
    node.DPK.CKA_WINDOW = 50
    # Steps from one measurement of CKA to the next.
    node.DPK.CKA_EVERY = 4


def _add_rivals(node: CN) -> None:
    # FitNets: weight; what the map is compared with, as DPK.TARGET ("raw" is the paper's).
    node.FITNETS = CN()
    node.FITNETS.WEIGHT = 1.0
    node.FITNETS.TARGET = "raw"

    # CWD: weight, and the temperature of the softmax over cells.
    node.CWD = CN()
    node.CWD.WEIGHT = 10.0
    node.CWD.TEMPERATURE = 1.0

    # PKD: weight.
    node.PKD = CN()
    node.PKD.WEIGHT = 6.0

    # MGD: weight (2e-5 for one-stage detectors, 5e-7 for two-stage ones), and the share of cells
    # that are blanked (0.65 and 0.45).
    node.MGD = CN()
    node.MGD.WEIGHT = 5e-7
    node.MGD.MASK_RATIO = 0.45

    # FGD: weights of objects, background, attention and the global part (one-stage detectors:
    # 1e-3, 5e-4, 5e-4, 5e-6), and the temperature of the attention.
    node.FGD = CN()
    node.FGD.ALPHA = 5e-5
    node.FGD.BETA = 2.5e-5
    node.FGD.GAMMA = 5e-5
    node.FGD.LAMBDA_ = 5e-7
    node.FGD.TEMPERATURE = 0.5

    # ReviewKD: weight, and the channels of the fused maps.
    node.REVIEWKD = CN()
    node.REVIEWKD.WEIGHT = 1.0
    node.REVIEWKD.MID = 256

    # KD on logits: weight of the heads that classify (regions, dense heads), weight of the
    # proposals' objectness (0: left out), temperature.
    node.KD = CN()
    node.KD.WEIGHT = 1.0
    node.KD.RPN_WEIGHT = 0.0
    node.KD.TEMPERATURE = 1.0

    # DKD on logits: weights of the target class's and of the other classes' part, temperature.
    node.DKD = CN()
    node.DKD.ALPHA = 1.0
    node.DKD.BETA = 0.25
    node.DKD.TEMPERATURE = 1.0


def _add_timm(node: CN) -> None:
    # The network below build_timm_fpn_backbone: any of timm's that can be built features_only.
    node.TIMM = CN()
    # Its name, as timm.create_model takes it ("mobilenetv2_100", "convnext_tiny.fb_in1k").
    node.TIMM.NAME = ""
    # Which of timm's feature maps, by index; negative ones count from the end. []: those that
    # MODEL.FPN.IN_FEATURES names by stride (res2: 4), or with no neck res2 to res5, the last of
    # each stride.
    node.TIMM.OUT_INDICES = []
    # Start from timm's own weights, which timm downloads.
    node.TIMM.PRETRAINED = False
    # Start from this file instead: .pth or .safetensors, with or without classifier, every weight
    # matched. A URL or, for ResNets, whose names timm shares, a torchvision:// name too.
    node.TIMM.WEIGHTS = ""
    # "": norms as the network has them; "FrozenBN", "SyncBN": each BatchNorm turned into that.
    node.TIMM.NORM = ""
    # More arguments of timm.create_model, by name: {strict_img_size: False, drop_path_rate: 0.1}.
    node.TIMM.KWARGS = CN(new_allowed=True)


def _add_torchvision(node: CN) -> None:
    # The network of build_torchvision_backbone and below build_torchvision_fpn_backbone: any of
    # torchvision's classifiers that is made of maps.
    node.TORCHVISION = CN()
    # Its name, as torchvision.models.get_model takes it ("resnet18", "convnext_tiny").
    node.TORCHVISION.NAME = ""
    # Start from torchvision's weights of this name ("IMAGENET1K_V1"), which torch downloads.
    node.TORCHVISION.WEIGHTS = ""
    # Which maps, by stride (res2: 4). []: those that MODEL.FPN.IN_FEATURES names, or with no neck
    # what there is of res2 to res5.
    node.TORCHVISION.OUT_FEATURES = []
    # "": norms as the network has them; "FrozenBN", "SyncBN": each BatchNorm turned into that.
    node.TORCHVISION.NORM = ""
    # More arguments of torchvision.models.get_model, by name: {stochastic_depth_prob: 0.1}.
    node.TORCHVISION.KWARGS = CN(new_allowed=True)


def load_config(config_file: str, opts: Sequence[str] = ()) -> CN:
    """Read a config file and overrides into Detectron2's defaults plus dpk_det's keys.

    Whole numbers do for keys that take any number, which Detectron2 alone refuses.

    Args:
        config_file: a path, with Detectron2's ``_BASE_`` chains.
        opts: ``[KEY, VALUE, KEY, VALUE, ...]`` as they stand on the command line.

    Raises:
        UserError: when the file is absent, no YAML or holds code, a key is unknown (naming the
            nearest one), or a value has the wrong type or cannot be meant.
    """
    cfg = get_cfg()
    add_dpk_config(cfg)
    if config_file and not Path(config_file).expanduser().is_file():
        raise UserError(f"There is no config file {config_file}: give --config-file a path to one.")
    check_pairs(opts)
    if config_file:
        _merge(cfg, read_config_file(config_file), f"in {config_file}")
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        _merge(cfg, _nested(key, value), "on the command line")
    check_values(cfg)
    return cfg


def _merge(cfg: CN, given: dict[str, Any], where: str) -> None:
    if given.get("VERSION", cfg.VERSION) != cfg.VERSION:
        raise UserError(
            f"VERSION is {given['VERSION']} ({where}), but Detectron2's configs are of version "
            f"{cfg.VERSION}: write the keys of that version."
        )
    try:
        cfg.merge_from_other_cfg(CN(_with_floats(given, cfg)))
    except KeyError as e:
        raise _unknown_key(str(e.args[0]).rpartition(": ")[2], cfg, where) from e
    except (*REFUSALS, MemoryError) as e:
        raise _unfit(str(e), where) from e


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _with_floats(given: dict[str, Any], cfg: CN) -> dict[str, Any]:
    def fit(value: Any, default: Any) -> Any:
        if isinstance(value, dict) and isinstance(default, CN):
            return _with_floats(value, default)
        decoded = CN._decode_cfg_value(value) if isinstance(value, str) else value
        return float(decoded) if type(decoded) is int and type(default) is float else value

    return {key: fit(value, cfg.get(key)) for key, value in given.items()}


_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "True or False",
    "str": "a text",
    "list": "a list",
    "tuple": "a list",
    "detectron2.config.config.CfgNode": "keys below it",
}


def _unfit(message: str, where: str) -> UserError:
    # "Type mismatch (<class 'int'> vs. <class 'str'>) with values (...) for config key: SEED"
    types, key = re.findall(r"<class '([\w.]+)'>", message), message.rpartition("config key: ")[2]
    if len(types) == 2 and key != message:
        wanted, found = (_KINDS.get(name, name) for name in types)
        return UserError(f"{key} ({where}) takes {wanted}, not {found}: correct it.")
    return UserError(f"A value {where} does not fit ({' '.join(message.split())}): correct it.")


def check_pairs(opts: Sequence[str]) -> None:
    """Overrides are pairs of a key and its value.

    Raises:
        UserError: when there is one too many.
    """
    if len(opts) % 2:
        raise UserError(f"The overrides {list(opts)} are no pairs: write KEY VALUE KEY VALUE ...")


def plain_architecture(cfg: CN) -> CN:
    """A copy of a config whose model does not distil: for evaluation, export and teachers.

    All its weights are going to be loaded, so it starts from none of timm's or torchvision's.
    """
    cfg = cfg.clone()
    cfg.defrost()
    name = cfg.MODEL.META_ARCHITECTURE
    cfg.MODEL.META_ARCHITECTURE = PLAIN.get(name, name)
    cfg.MODEL.TIMM.PRETRAINED, cfg.MODEL.TIMM.WEIGHTS = False, ""
    cfg.MODEL.TORCHVISION.WEIGHTS = ""
    return cfg


def method_arguments(cfg: CN) -> dict[str, dict]:
    """The arguments of each of ``DISTILL.METHODS``: its node's keys in lower case.

    Raises:
        UserError: when a method is named twice.
    """
    check_names(cfg.DISTILL.METHODS, "DISTILL.METHODS")
    nodes = _method_nodes(cfg)
    return {name: nodes.get(name, {}) for name in cfg.DISTILL.METHODS}


def _method_nodes(cfg: CN) -> dict[str, dict]:
    return {
        name.lower(): {key.lower(): value for key, value in node.items()}
        for name, node in cfg.DISTILL.items()
        if isinstance(node, CN) and name != "TEACHER"
    }


def check_distillation(cfg: CN) -> None:
    """Check before anything is built that what ``DISTILL`` says has an effect, and can be.

    Raises:
        UserError: when a key is given that a plain ``META_ARCHITECTURE`` makes no use of, or a
            method is unknown, named twice or has an argument out of its range.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    if name in PLAIN.values():
        used = ["INHERIT", "TEACHER."] if cfg.DISTILL.INHERIT else []
        used += [f"{method.upper()}." for method in _method_nodes(cfg)]  # see unused_keys
        for key in _given(cfg):
            if not key.startswith(tuple(used)):
                distilling = next(other for other, plain in PLAIN.items() if plain == name)
                raise UserError(
                    f"DISTILL.{key} is given, but a {name} does not distil and makes no use of it: "
                    f"take it out, or set MODEL.META_ARCHITECTURE to {distilling}."
                )
    else:
        for method in method_arguments(cfg):
            find(DISTILLERS, method, "distiller")
    for method, arguments in _method_nodes(cfg).items():
        if method in DISTILLERS:
            check_arguments(method, DISTILLERS[method], arguments)


def unused_keys(cfg: CN) -> list[str]:
    """The keys of methods that do not run, where they are not the defaults.

    No mistake, because a base may well give them for the configs upon it.
    """
    distils = cfg.MODEL.META_ARCHITECTURE not in PLAIN.values()
    unused = _method_nodes(cfg).keys() - {*(cfg.DISTILL.METHODS if distils else ())}
    return [f"DISTILL.{key}" for key in _given(cfg) if key.partition(".")[0].lower() in unused]


def _given(cfg: CN) -> list[str]:
    """The keys below ``DISTILL`` that have another value than their default."""
    default = get_cfg()
    add_dpk_config(default)
    known = dict(flatten(default.DISTILL))
    return [key for key, value in flatten(cfg.DISTILL) if known.get(key, value) != value]


def _unknown_key(key: str, cfg: CN, where: str) -> UserError:
    near = difflib.get_close_matches(key.upper(), [key for key, _ in flatten(cfg)], 1, 0.4)
    hint = f"did you mean {near[0]}?" if near else "take it out."
    return UserError(f"There is no config key {key} ({where}): {hint}")
