"""The keys that dpk_det adds to Detectron2's config, except those of methods."""

from typing import Any

KEYS: dict[str, tuple[Any, str]] = {
    "IMPORTS": (
        [],
        "Modules to import before the rest of a config is read, in every process of every command. "
        "They may register methods, meta-architectures, backbones and datasets. If a module has a "
        "function `add_config(cfg)`, it is called and can add config keys. Modules are looked for "
        "in the working directory and in PYTHONPATH. Those named on the command line are imported "
        "as well as the file's.",
    ),
    "DATASETS.JSON": (
        {},
        "Your own datasets in COCO's format, `name: [annotations.json, image folder]`. The names "
        "can then stand in DATASETS.TRAIN and DATASETS.TEST. Relative paths start at the working "
        "directory.",
    ),
    "DATASETS.IMAGES": (
        {},
        "Your own datasets for classifiers: `name: path` of a folder or zip that has one folder "
        "for each class, or `name: [path, part]` of CIFAR's archive, unpacked or not, where part "
        "is train or test.",
    ),
    "DATALOADER.RANDOM_SUBSET_RATIO": (
        1.0,
        "Share of the training images that are used if DATALOADER.SAMPLER_TRAIN is "
        "RandomSubsetTrainingSampler. SEED decides which. Detectron2 0.6 has the sampler without "
        "the key.",
    ),
    "INPUT.IMAGES.SIZE": (224, "Side in pixels of the images that a classifier is given."),
    "INPUT.IMAGES.IN_MEMORY": (
        False,
        "True: decode all images once and keep them, resized to SIZE; for small images. Training "
        "then shifts each by PAD pixels at most, over black. False: DATALOADER.NUM_WORKERS read "
        "them; training crops by RandomResizedCrop, evaluation resizes the shorter side to "
        "RESIZE_TEST and takes the middle. INPUT.RANDOM_FLIP holds for both.",
    ),
    "INPUT.IMAGES.PAD": (4, "Pixels by which IN_MEMORY images are shifted at most."),
    "INPUT.IMAGES.RESIZE_TEST": (256, "Shorter side in pixels before the middle is cut out."),
    "INPUT.IMAGES.BATCH_TEST": (100, "Images of a batch in evaluation, for each process."),
    "MODEL.FPN.TOP_BLOCK": (
        "",
        'What an FPN of dpk_det\'s builders has above IN_FEATURES. "maxpool": one map, pooled from '
        'its coarsest. "p6p7": two, by convolutions from the coarsest map of the network below '
        '(RetinaNet). "p6p7_p5": two, by convolutions from its own coarsest (FCOS). "none". "": '
        '"maxpool" if res5 is the coarsest, else "none". Detectron2\'s own builders ignore it.',
    ),
    "MODEL.TIMM.NAME": (
        "",
        "The network below build_timm_fpn_backbone, as timm.create_model takes its name "
        '("mobilenetv2_100", "convnext_tiny.fb_in1k"). It must support features_only.',
    ),
    "MODEL.TIMM.OUT_INDICES": (
        [],
        "Which of timm's feature maps, by index; negative ones count from the end. []: those that "
        "MODEL.FPN.IN_FEATURES names by stride (res2: 4); without a neck res2 to res5, the last of "
        "each stride.",
    ),
    "MODEL.TIMM.PRETRAINED": (False, "Start from timm's own weights, which timm downloads."),
    "MODEL.TIMM.WEIGHTS": (
        "",
        "Start from this file: .pth or .safetensors, with or without classifier, every weight "
        "matched. A URL is possible too and, for ResNets, a torchvision:// name.",
    ),
    "MODEL.TIMM.NORM": (
        "",
        '"": norms as the network has them. "FrozenBN", "SyncBN": each BatchNorm becomes that.',
    ),
    "MODEL.TIMM.KWARGS": (
        {},
        "More arguments of timm.create_model, by name: {strict_img_size: False, drop_path_rate: "
        "0.1}.",
    ),
    "MODEL.CLASSIFIER.NUM_CLASSES": (1000, "Classes of ImageClassifier."),
    "MODEL.CLASSIFIER.LOSS_WEIGHT": (1.0, "Weight of its cross-entropy."),
    "MODEL.CLASSIFIER.LABEL_SMOOTHING": (
        0.0,
        "Share of the cross-entropy's target that is spread evenly over the classes.",
    ),
    "MODEL.CIFAR.NAME": (
        "resnet20",
        "The network of build_cifar_backbone: resnet8, 14, 20, 32, 44, 56, 110, 8x4, 32x4; "
        "wrn_16_2, wrn_40_1, wrn_40_2; vgg8, vgg13; mobilenetv2, shufflenetv1, shufflenetv2.",
    ),
    "MODEL.BACKBONE_WEIGHTS": (
        "",
        "Weights that only the backbone's bottom-up network starts from, after MODEL.WEIGHTS: the "
        "checkpoint of another detector or of a classifier, or a file of such a network alone.",
    ),
    "MODEL.SMALL_RESNET.WIDTHS": (
        [16, 32, 64, 128],
        "Widths of the stem and of each stage of build_small_resnet_fpn_backbone.",
    ),
    "MODEL.SMALL_RESNET.BLOCKS": ([1, 1, 1, 1], "Its residual blocks in each stage."),
    "MODEL.FCOS.NUM_CLASSES": (80, "Classes of FCOS, for which Detectron2 has no keys."),
    "MODEL.FCOS.IN_FEATURES": (
        ["p3", "p4", "p5", "p6", "p7"],
        "The backbone's maps that the head reads, finest first; all of one width.",
    ),
    "MODEL.FCOS.NUM_CONVS": (
        4,
        "Convolutions of the head before its outputs, for classes and for boxes each.",
    ),
    "MODEL.FCOS.NORM": (
        "GN",
        'Their norm: "GN" (as many of 32 groups as divide the width), "" for none, or another that '
        "Detectron2 knows.",
    ),
    "MODEL.FCOS.PRIOR_PROB": (0.01, "Probability of an object that an untrained head gives."),
    "MODEL.FCOS.CENTER_SAMPLING_RADIUS": (
        1.5,
        "A cell learns a box only if it is at most this many strides from the box's centre.",
    ),
    "MODEL.FCOS.FOCAL_LOSS_ALPHA": (0.25, "Alpha of the focal loss."),
    "MODEL.FCOS.FOCAL_LOSS_GAMMA": (2.0, "Gamma of the focal loss."),
    "MODEL.FCOS.SCORE_THRESH_TEST": (
        0.2,
        "Least score of a detection: the root of class probability times centerness.",
    ),
    "MODEL.FCOS.TOPK_CANDIDATES_TEST": (
        1000,
        "Detections of each level that non-maximum suppression is given.",
    ),
    "MODEL.FCOS.NMS_THRESH_TEST": (0.6, "IoU of non-maximum suppression."),
    "TEST.BEST_METRIC": (
        "",
        "Keep the weights of the best evaluation as model_best.pth: the figure that counts, such "
        'as "bbox/AP", of the evaluations at TEST.EVAL_PERIOD. "": do not.',
    ),
    "TEST.PATIENCE": (
        0,
        "End the training after so many evaluations without a new best of TEST.BEST_METRIC. 0: "
        "never.",
    ),
    "TRACKER.NAME": (
        "",
        'Send the curves of metrics.json to an experiment tracker as well: "wandb" (Weights & '
        'Biases), "mlflow" or "trackio", which is installed by the same name. "": do not.',
    ),
    "TRACKER.PROJECT": ("dpk_det", "Project of the tracker. The run has the name of OUTPUT_DIR."),
    "SOLVER.EMA_DECAY": (
        0.0,
        "Average the weights over the steps exponentially, a <- DECAY a + (1 - DECAY) w; 0.999 is "
        "usual. The average is what is evaluated; it is saved as model_ema.pth. 0.0: do not.",
    ),
    "SOLVER.FUSED": (
        False,
        "Update all weights in one kernel (torch's fused optimizer). This project's trainer reads "
        "it; DistillHook takes its trainer's optimizer as it is.",
    ),
    "DISTILL.METHODS": (
        ["dpk"],
        "Distillation methods, by name; their losses are added up. The node DISTILL.<NAME> holds "
        "the arguments of each.",
    ),
    "DISTILL.LEVELS": (
        [],
        'The student\'s feature maps that learn, by name (["p3", "p4"]), or modules by their path '
        '("backbone.bottom_up.res4"); "OWN from OTHER" names the teacher\'s too. []: all maps of '
        "the backbone that pair by stride. A method's own LEVELS go before.",
    ),
    "DISTILL.WARMUP_ITERS": (
        0,
        "Steps over which the losses of all methods rise linearly to their full weight; 0: at "
        "once. DKD and ReviewKD are published with it, for classifiers.",
    ),
    "DISTILL.STOP_AT": (
        1.0,
        "Share of the training from which the student learns from its own task alone. From there "
        "on the teacher is not run. 1.0: never.",
    ),
    "DISTILL.GRAD_SHARE": (
        0.0,
        "Steer the weight of each method so that its gradient at the student's maps is this share "
        "of the gradient of the student's own losses there. 0: weights stay as they are.",
    ),
    "DISTILL.GRAD_SHARE_EVERY": (
        100,
        "Steps from one measurement of that share to the next, logged as NAME/grad_share. 0: never "
        "measure.",
    ),
    "DISTILL.INHERIT": (
        False,
        "Start the student's neck, proposal generator and heads from the teacher's weights where "
        "names and shapes match (Kang et al. 2021). It works for a plain student too: compare with "
        "that one.",
    ),
    "DISTILL.TEACHER.CONFIG_FILE": (
        "",
        "The teacher's own config: a path, or a name of Detectron2's model zoo "
        '("COCO-Detection/faster_rcnn_R_101_FPN_3x.yaml"). YAML, or a LazyConfig\'s .py.',
    ),
    "DISTILL.TEACHER.WEIGHTS": (
        "",
        "The teacher's weights: a path or URL. \"\": the zoo's own; for a path the model_final.pth "
        "(model_ema.pth with SOLVER.EMA_DECAY) that training with that config has left in its "
        "OUTPUT_DIR (train.output_dir).",
    ),
    "DISTILL.TEACHER.OPTS": (
        [],
        "Overrides of the teacher's config, as on the command line: "
        '["MODEL.ROI_HEADS.NUM_CLASSES", 3]; of a LazyConfig ["model.roi_heads.num_classes", 3].',
    ),
    "DISTILL.TEACHER.PRECISION": (
        "",
        'What the teacher computes in: "" (as the student does, SOLVER.AMP), "bf16" or "fp16".',
    ),
    "DISTILL.TEACHER.CHANNELS_LAST": (
        False,
        "Keep the teacher's channels innermost in memory. Convolutions on CPUs, and in 16 bits on "
        "GPUs, are faster that way. Its features stay the same but for rounding.",
    ),
    "DISTILL.TEACHER.COMPILE": (
        False,
        "Run the teacher through torch.compile, which takes a minute or two at the start.",
    ),
}
"""Name -> default, meaning."""


GONE: dict[str, Any] = {
    "DISTILL.DPK.CKA_KERNEL": "linear",
    "DISTILL.DPK.MLP_RATIO": 2.0,
    "DISTILL.DPK.RATIO_MIN": 0.0,
    "DISTILL.DPK.RATIO_MAX": 1.0,
    "MODEL.TORCHVISION.NAME": "",
    "MODEL.TORCHVISION.WEIGHTS": "",
    "MODEL.TORCHVISION.OUT_FEATURES": [],
    "MODEL.TORCHVISION.NORM": "",
    "MODEL.TORCHVISION.KWARGS": {},
}
"""Keys of earlier versions -> the only value that old configs may still give them."""
