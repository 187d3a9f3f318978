"""dpk_det distils large object detectors into small ones, inside Detectron2.

Importing it registers meta-architectures, backbones and datasets. Without Detectron2 only
``dpk_det.distill``, which needs torch and msgspec, can be used.
"""

import warnings
from importlib.util import find_spec

__version__ = "0.2.0"
__all__ = ["__version__"]

if find_spec("detectron2") is not None:
    with warnings.catch_warnings():  # Detectron2 would show it before every command's output
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
        import detectron2.modeling  # noqa: F401
    from dpk_det import data, modeling  # noqa: F401  (they register themselves)
    from dpk_det.architectures import plain_architecture
    from dpk_det.config.keys import add_dpk_config
    from dpk_det.config.loading import load_config
    from dpk_det.modeling import register_distilled
    from dpk_det.pairing.attach import attach_distiller
    from dpk_det.pairing.distil import attach_from_config, distil
    from dpk_det.pairing.hook import DistillHook
    from dpk_det.pairing.inherit import inherit_weights
    from dpk_det.pairing.teacher import build_teacher, load_teacher

    __all__ += [
        "DistillHook",
        "add_dpk_config",
        "attach_distiller",
        "attach_from_config",
        "build_teacher",
        "distil",
        "inherit_weights",
        "load_config",
        "load_teacher",
        "plain_architecture",
        "register_distilled",
    ]
