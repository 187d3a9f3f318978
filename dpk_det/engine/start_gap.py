"""The CKA gap between an untrained student and its teacher."""

from itertools import islice

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage

from dpk_det import random_state
from dpk_det.architectures import build, plain_name
from dpk_det.distill import Distiller
from dpk_det.distill.dpk.cka import MIN_SAMPLES, cka_from_terms, hsic_terms
from dpk_det.distill.dpk.samples import LevelView, of_tokens
from dpk_det.engine.start import load_start
from dpk_det.engine.trainer import DistillTrainer
from dpk_det.pairing.levels import find_modules, pair_maps
from dpk_det.pairing.modules import look, module_path
from dpk_det.pairing.teacher import build_teacher

SEED = 1


@torch.no_grad()
def start_gap(cfg: CfgNode, batches: int = 8) -> dict[str, float]:
    """Measure the gap ``1 - CKA`` that DPK would see in its first step.

    The terms of CKA are averaged over the first batches of the training data. The token size is
    ``DISTILL.DPK.TOKEN_STRIDE``, whatever the method is.

    Args:
        cfg: the config of a training. Its teacher has weights and its datasets are registered.
        batches: the number of batches to measure.

    Returns:
        The gap of each level, by the student's name of the level. The gap is 1 if a level has too
        few tokens for CKA.

    Raises:
        UserError: when student or teacher cannot be built, or their levels cannot be paired.
    """
    with random_state.kept(), EventStorage():
        torch.manual_seed(SEED)
        plain = cfg.clone()
        plain.defrost()
        plain.MODEL.META_ARCHITECTURE = plain_name(cfg.MODEL.META_ARCHITECTURE)
        student, teacher = build(plain), build_teacher(cfg)
        load_start(student, cfg)
        student.train()  # norm layers then work as in the first step
        layouts = find_modules(student, teacher, cfg.DISTILL.LEVELS)
        pairs = pair_maps(student, teacher, cfg.DISTILL.LEVELS, layouts=layouts)
        eyes = Distiller(pairs)
        terms = torch.zeros(len(pairs), 3)
        for batch in islice(DistillTrainer.build_train_loader(cfg), batches):
            own = look(student, batch, layouts)
            for i, pair in enumerate(eyes.pairs(own, teacher(batch))):
                patch = max(1, cfg.DISTILL.DPK.TOKEN_STRIDE // pair.level.stride)
                samples = of_tokens(LevelView(pair, patch))
                if samples[-1] >= MIN_SAMPLES:
                    terms[i] += hsic_terms(*samples).float().cpu()
    gaps = (1 - cka_from_terms(terms)).tolist()
    return {module_path(pair.student): gap for pair, gap in zip(pairs, gaps, strict=True)}
