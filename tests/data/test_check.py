"""The checks before training: names, files, number of classes."""

import json
import shutil

import cv2
import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES
from detectron2.modeling import META_ARCH_REGISTRY

from dpk_det.data import (
    categories,
    check_datasets,
    dataset_sizes,
    num_classes,
    register_json_datasets,
    shapes,
)
from dpk_det.errors import UserError
from dpk_det.modeling import register_distilled


@pytest.fixture
def pets(tmp_path, cfg):
    """A config that trains on two images with three classes."""
    (tmp_path / "images").mkdir()
    for i in (1, 2):
        cv2.imwrite(str(tmp_path / "images" / f"{i}.png"), np.zeros((8, 8, 3), np.uint8))
    content = {
        "info": {},
        "images": [{"id": i, "file_name": f"{i}.png", "height": 8, "width": 8} for i in (1, 2)],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4]}],
        "categories": [{"id": i, "name": f"pet{i}"} for i in (1, 2, 3)],
    }
    (tmp_path / "pets.json").write_text(json.dumps(content))
    cfg.DATASETS.JSON.pets = [str(tmp_path / "pets.json"), str(tmp_path / "images")]
    cfg.DATASETS.TRAIN = ("pets",)
    cfg.DATASETS.TEST = ()
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    register_json_datasets(cfg)
    return cfg


def test_all_well(pets):
    check_datasets(pets)
    # Loading agrees with the classes that the check kept.
    assert dataset_sizes(pets) == {"pets": 2}
    check_datasets(pets)


@pytest.mark.parametrize("key", ["TRAIN", "TEST"])
def test_an_unknown_name_is_answered_with_the_nearest(cfg, key):
    cfg.DATASETS[key] = ("coco_2017_vall",)
    with pytest.raises(UserError, match=r"'coco_2017_vall', which is not .*'coco_2017_val'\?"):
        check_datasets(cfg)


def test_an_absent_annotation_file(pets, tmp_path):
    (tmp_path / "pets.json").unlink()
    with pytest.raises(UserError) as error:
        check_datasets(pets)
    path = tmp_path / "pets.json"
    assert f"{path}, does not exist: correct DATASETS.JSON.pets." in str(error.value)


def test_an_absent_image_folder(pets, tmp_path):
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(UserError, match=r"images, does not exist: correct DATASETS.JSON.pets\."):
        check_datasets(pets)


def test_an_absent_builtin_dataset_names_the_variable(cfg, tmp_path):
    MetadataCatalog.get("made_up").set(json_file=str(tmp_path / "a.json"), thing_classes=["a"])
    DatasetCatalog.register("made_up", list)
    cfg.DATASETS.TEST = ("made_up",)
    with pytest.raises(UserError, match="a.json, does not exist: set .* DETECTRON2_DATASETS"):
        check_datasets(cfg)


def test_shapes_need_not_be_drawn_yet(cfg, tmp_path):
    shapes.register("shapes_tiny", str(tmp_path / "a"), 2, seed=0)
    cfg.DATASETS.TRAIN = ("shapes_tiny",)
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 6
    check_datasets(cfg)
    assert not (tmp_path / "a").exists()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 80
    with pytest.raises(UserError, match="dataset shapes_tiny has 6 classes: set it to 6"):
        check_datasets(cfg)
    assert dataset_sizes(cfg) == {"shapes_tiny": 2}


def test_datasets_without_json_are_left_to_detectron2(cfg):
    DatasetCatalog.register("listed", lambda: [{}, {}, {}])
    MetadataCatalog.get("listed").set(thing_classes=["a"])
    cfg.DATASETS.TRAIN = ("listed",)
    cfg.DATASETS.TEST = ("voc_2007_test",)
    check_datasets(cfg)
    cfg.DATASETS.TEST = ("listed",)
    assert dataset_sizes(cfg) == {"listed": 3}


def test_the_number_of_classes_must_match(pets):
    pets.MODEL.ROI_HEADS.NUM_CLASSES = 80
    with pytest.raises(UserError) as error:
        check_datasets(pets)
    assert str(error.value) == (
        "MODEL.ROI_HEADS.NUM_CLASSES is 80 but dataset pets has 3 classes: set it to 3."
    )


def test_annotations_are_read_whatever_the_model(pets, tmp_path):
    check_datasets(pets)
    (tmp_path / "pets.json").write_text("no JSON any more")
    for name in ("GeneralizedRCNN", "ProposalNetwork"):
        pets.MODEL.META_ARCHITECTURE = name
        with pytest.raises(UserError, match="pets.json is no JSON"):
            check_datasets(pets)


def test_the_files_classes_are_those_of_the_metadata(pets):
    MetadataCatalog.get("pets").thing_classes = ["a", "b", "c"]
    with pytest.raises(UserError, match=r"categories .*pet1.* where pets needs \['a', 'b', 'c'\]"):
        check_datasets(pets)


def test_annotations_are_checked_as_far_as_the_dataset_is_used(pets, tmp_path):
    check_datasets(pets)
    pets.DATASETS.TEST = ("pets",)
    with pytest.raises(UserError, match="1 annotation.* without 'area'"):
        check_datasets(pets)


def test_categories_are_those_of_the_dataset_that_is_evaluated(pets, tmp_path):
    content = json.loads((tmp_path / "pets.json").read_text())
    content["categories"] = [{"id": i, "name": f"pet{i}"} for i in (30, 7, 11)]
    content["annotations"] = []
    (tmp_path / "pets.json").write_text(json.dumps(content))
    shutil.rmtree(tmp_path / "images")  # not needed for this
    pets.DATASETS.TEST = ("pets",)
    assert list(categories(pets).items()) == [(7, "pet7"), (11, "pet11"), (30, "pet30")]
    before = dict(MetadataCatalog.get("pets").thing_dataset_id_to_contiguous_id)
    DatasetCatalog.get("pets")  # agrees, or Detectron2's metadata would raise
    assert MetadataCatalog.get("pets").thing_dataset_id_to_contiguous_id == before
    assert list(categories(pets)) == [7, 11, 30]
    pets.MODEL.ROI_HEADS.NUM_CLASSES = 4
    with pytest.raises(UserError, match="has 3 classes: set it to 3"):
        categories(pets)


def test_categories_of_other_datasets(cfg):
    cfg.DATASETS.TEST = ("coco_2017_val",)
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    found = categories(cfg)
    assert len(found) == 80 and found[90] == "toothbrush"
    cfg.DATASETS.TEST = ("voc_2007_test",)
    cfg.MODEL.RETINANET.NUM_CLASSES = 20
    assert categories(cfg)[0] == "aeroplane"
    DatasetCatalog.register("bare", list)
    cfg.DATASETS.TEST = ("bare",)
    with pytest.raises(UserError, match="bare has no class names"):
        categories(cfg)
    cfg.DATASETS.TEST = ("coco_2017_vall",)
    with pytest.raises(UserError, match="did you mean 'coco_2017_val'"):
        categories(cfg)
    cfg.DATASETS.TEST = ()
    assert categories(cfg) == {i: str(i) for i in range(20)}
    cfg.MODEL.META_ARCHITECTURE = "FCOS"
    with pytest.raises(UserError, match="no telling how many classes a FCOS has"):
        categories(cfg)
    cfg.MODEL.META_ARCHITECTURE = "ImageClassifier"
    cfg.MODEL.CLASSIFIER = CfgNode({"NUM_CLASSES": 1000})
    assert len(categories(cfg)) == 1000
    cfg.DATASETS.TEST = ("coco_2017_val",)
    with pytest.raises(UserError, match="ImageClassifier has no use for dataset coco_2017_val"):
        categories(cfg)


def test_categories_are_in_the_order_of_the_models_classes(cfg):
    DatasetCatalog.register("unsorted", list)
    MetadataCatalog.get("unsorted").set(
        thing_classes=["a", "b"], thing_dataset_id_to_contiguous_id={7: 1, 3: 0}
    )
    cfg.DATASETS.TEST = ("unsorted",)
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.MODEL.RETINANET.NUM_CLASSES = 2
    assert list(categories(cfg).items()) == [(3, "a"), (7, "b")]


def test_categories_of_lvis_count_from_1(cfg):
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.DATASETS.TEST = ("lvis_v1_val",)
    cfg.MODEL.RETINANET.NUM_CLASSES = len(LVIS_CATEGORIES)
    found = categories(cfg)
    assert found == {x["id"]: x["synonyms"][0] for x in LVIS_CATEGORIES}
    assert list(found) == sorted(found)
    cfg.DATASETS.TEST = ("lvis_v0.5_val_cocofied",)  # has COCO's ids
    cfg.MODEL.RETINANET.NUM_CLASSES = 80
    assert categories(cfg)[90] == "toothbrush"


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("GeneralizedRCNN", 11),
        ("DistillRCNN", 11),
        ("PanopticFPN", 11),
        ("RetinaNet", 12),
        ("DistillRetinaNet", 12),
        ("DistillFCOS", 13),
        ("PanopticFPN", 11),
        ("DistillPanopticFPN", 11),
        ("ProposalNetwork", None),
        ("SemanticSegmentor", None),
    ],
)
def test_num_classes_by_architecture(cfg, architecture, expected):
    cfg.MODEL.META_ARCHITECTURE = architecture
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 11
    cfg.MODEL.RETINANET.NUM_CLASSES = 12
    cfg.MODEL.FCOS = CfgNode({"NUM_CLASSES": 13})
    assert num_classes(cfg) == expected


def test_fcos_without_a_node_is_not_checked(cfg):
    cfg.MODEL.META_ARCHITECTURE = "FCOS"
    assert num_classes(cfg) is None


def test_a_name_of_ones_own_counts_as_the_plain_one(cfg, monkeypatch):
    # Detectron2's registries can forget nothing
    monkeypatch.setattr(META_ARCH_REGISTRY, "_obj_map", dict(META_ARCH_REGISTRY._obj_map))
    register_distilled("RetinaNet", "Taught")
    cfg.MODEL.META_ARCHITECTURE = "Taught"
    cfg.MODEL.RETINANET.NUM_CLASSES = 12
    assert num_classes(cfg) == 12


def test_the_classes_of_pixels_are_counted_where_the_model_segments(pets):
    MetadataCatalog.get("pets").stuff_classes = ["things", "grass"]
    check_datasets(pets)
    for name in ("PanopticFPN", "DistillPanopticFPN", "SemanticSegmentor"):
        pets.MODEL.META_ARCHITECTURE = name
        pets.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 54
        with pytest.raises(UserError, match="NUM_CLASSES is 54 but dataset pets has 2 classes of"):
            check_datasets(pets)
        pets.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 2
        check_datasets(pets)


def test_an_absent_folder_of_segmentations(pets, tmp_path):
    MetadataCatalog.get("pets").sem_seg_root = str(tmp_path / "stuff")
    with pytest.raises(UserError, match=r"segmentation folder of pets, .*stuff, does not exist: c"):
        check_datasets(pets)


def test_keypoints_need_a_sigma_each_to_be_evaluated(pets, tmp_path):
    content = json.loads((tmp_path / "pets.json").read_text())
    content["annotations"][0] |= {"area": 16, "iscrowd": 0, "num_keypoints": 17}

    def write(number):
        content["annotations"][0]["keypoints"] = [4, 4, 2] * number
        (tmp_path / "pets.json").write_text(json.dumps(content))

    write(17)
    pets.MODEL.KEYPOINT_ON = True
    MetadataCatalog.get("pets").set(keypoint_names=["nose"], keypoint_flip_map=[])
    check_datasets(pets)
    pets.DATASETS.TEST = ("pets",)
    check_datasets(pets)
    pets.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = 3
    write(3)
    with pytest.raises(UserError, match=r"NUM_KEYPOINTS is 3 but there are 17 TEST.KEYPOINT_OKS_S"):
        check_datasets(pets)
    pets.TEST.KEYPOINT_OKS_SIGMAS = [0.1, 0.1]
    with pytest.raises(UserError, match="is 3 but there are 2"):
        check_datasets(pets)
    pets.TEST.KEYPOINT_OKS_SIGMAS = [0.1, 0.1, 0.1]
    check_datasets(pets)


def test_keypoints_need_names_to_be_trained(pets, tmp_path):
    content = json.loads((tmp_path / "pets.json").read_text())
    content["annotations"][0]["keypoints"] = [4, 4, 2] * 17
    (tmp_path / "pets.json").write_text(json.dumps(content))
    pets.MODEL.KEYPOINT_ON = True
    with pytest.raises(UserError, match="metadata of dataset pets has no keypoint_names, which"):
        check_datasets(pets)
    MetadataCatalog.get("pets").keypoint_names = ["nose"]
    with pytest.raises(UserError, match=r"keypoint_flip_map, .*get.'pets'.\.keypoint_flip_map = "):
        check_datasets(pets)


def test_models_of_masks_need_masks(pets):
    pets.MODEL.MASK_ON = True
    with pytest.raises(UserError, match="without 'segmentation'"):
        check_datasets(pets)
    pets.MODEL.MASK_ON = False
    check_datasets(pets)


# ------------------------------------------------------------------ images


def test_images_are_opened_and_have_the_size_that_the_file_says(pets, tmp_path):
    cv2.imwrite(str(tmp_path / "images" / "2.png"), np.zeros((8, 9, 3), np.uint8))
    with pytest.raises(UserError, match="2.png has 9 x 8 pixels where its annotations say 8 x 8"):
        check_datasets(pets)


def test_an_image_that_the_resizing_makes_nothing_of(pets, tmp_path):
    content = json.loads((tmp_path / "pets.json").read_text())
    content["images"][1] |= {"width": 5000, "height": 1}
    (tmp_path / "pets.json").write_text(json.dumps(content))
    cv2.imwrite(str(tmp_path / "images" / "2.png"), np.zeros((1, 5000, 3), np.uint8))
    with pytest.raises(UserError, match="5000 x 1 pixels, which cannot be resized for the model"):
        check_datasets(pets)
    pets.INPUT.MIN_SIZE_TRAIN = (0,)
    check_datasets(pets)


def test_only_decoding_finds_an_image_that_is_cut_off(pets, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    path = tmp_path / "images" / "2.png"
    cv2.imwrite(str(path), noise)
    path.write_bytes(path.read_bytes()[:-60])
    check_datasets(pets, all_images=True)
    with pytest.raises(UserError, match="2.png cannot be read as an image"):
        check_datasets(pets, decode=True)


def test_images_of_other_formats_are_opened_where_all_are(cfg, tmp_path):
    DatasetCatalog.register("listed", lambda: [{"file_name": str(tmp_path / "gone.png")}])
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("listed",), ()
    check_datasets(cfg)
    with pytest.raises(UserError, match="gone.png does not exist"):
        check_datasets(cfg, all_images=True)


# ------------------------------------------------------------------ the order of classes


@pytest.fixture
def others(pets, tmp_path):
    """``others(names)`` registers the same images with other categories."""

    def register(*names):
        content = json.loads((tmp_path / "pets.json").read_text())
        content["categories"] = [{"id": i, "name": x} for i, x in enumerate(names, 1)]
        content["annotations"][0] |= {"area": 16, "iscrowd": 0}
        (tmp_path / "others.json").write_text(json.dumps(content))
        pets.DATASETS.JSON.others = [str(tmp_path / "others.json"), str(tmp_path / "images")]
        register_json_datasets(pets)

    return register


def test_classes_in_another_order_for_evaluation(pets, others, caplog):
    others("pet1", "pet3", "pet2")
    pets.DATASETS.TEST = ("others",)
    with pytest.raises(UserError) as error:
        check_datasets(pets)
    assert str(error.value) == (
        "Datasets pets and others have not the same classes in the same order ('pet2' is number 1 "
        "of one and 2 of the other): make their categories alike."
    )


def test_classes_of_other_names_are_a_warning_in_evaluation_alone(pets, others, caplog):
    others("pet1", "animal2", "pet3")
    pets.DATASETS.TEST = ("others",)
    check_datasets(pets)
    assert "different names (number 1 is 'pet2' and 'animal2')" in caplog.text
    pets.DATASETS.TRAIN, pets.DATASETS.TEST = ("pets", "others"), ()
    with pytest.raises(UserError, match="number 1 is 'pet2' and 'animal2'"):  # as Detectron2 does
        check_datasets(pets)
