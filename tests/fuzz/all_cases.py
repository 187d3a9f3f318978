"""Every case, in a fixed order."""

from cases import Case
from coco_cases import coco_cases
from config_cases import config_cases
from image_cases import image_cases
from predict_cases import predict_cases
from suite_cases import suite_cases
from world import World


def all_cases(world: World) -> list[Case]:
    """All cases, named once."""
    cases = [
        *config_cases(world),
        *coco_cases(world),
        *image_cases(world),
        *suite_cases(world),
        *predict_cases(world),
    ]
    names = [(case.kind, case.name) for case in cases]
    assert len({*names}) == len(names), {x for x in names if names.count(x) > 1}
    return cases
