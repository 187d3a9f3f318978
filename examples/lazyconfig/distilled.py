"""LazyConfig of the same student with a teacher: it shows all that distillation adds."""

from detectron2.config import LazyCall as L

from dpk_det import distil, load_teacher

from .student import dataloader, lr_multiplier, optimizer, train  # noqa: F401
from .student import model as student

model = L(distil)(
    model=student,
    teacher=L(load_teacher)(
        config_file="configs/shapes/teacher.yaml",
        weights="output/demo/runs/teacher/model_final.pth",  # `make demo` writes it
    ),
    methods={"dpk": {"weight": 48.0, "token_stride": 16, "dim": 64, "heads": 4}},
    max_iter="${train.max_iter}",
)
train.output_dir = "output/examples/lazyconfig/distilled"
