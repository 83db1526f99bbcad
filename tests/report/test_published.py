"""The published figures: complete, and those of the paper."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from stack.report.published import Row, datasets, rows

STUDENTS = {"reverse-KL", "Jensen-Shannon"}
ONE_STEP_TEXT = {"SwiftBrush v2", "EMD", "DMD", "UFOGen", "InstaFlow", "HiPA", "SwiftBrush"}
METHODS = {
    "cifar10": STUDENTS
    | {"EDM", "softened reverse-KL", "squared Hellinger", "Jeffreys", "forward-KL", "GDD", "GDD-I"}
    | {"adversarial distillation", "SiD (alpha 1.2)", "SiD (alpha 1)", "CTM", "StyleSAN-XL"}
    | {"PFGM++"},
    "imagenet64": STUDENTS
    | {"EDM", "forward-KL", "GDD-I", "GDD", "SiD", "adversarial distillation", "CTM", "EMD"}
    | {"TCM", "ECM", "DMD", "DisCo-Diff", "RIN"},
    "coco30k": STUDENTS | ONE_STEP_TEXT | {"Stable Diffusion v1.5", "GigaGAN", "StyleGAN-T"},
    "coco_similarity": STUDENTS | {"Stable Diffusion v1.5"},
    "parti": STUDENTS | {"Stable Diffusion v1.5"},
    "hpsv2": STUDENTS | {"Stable Diffusion v1.5", "InstaFlow", "SwiftBrush", "SwiftBrush v2"},
}
COUNTS = {"cifar10": 19, "imagenet64": 15, "coco30k": 17, "coco_similarity": 6, "parti": 6}
COUNTS |= {"hpsv2": 9}


def find(dataset: str, method: str, **fields: float | bool) -> Row:
    found = [
        row
        for row in rows(dataset)
        if row.method == method and all(getattr(row, k) == v for k, v in fields.items())
    ]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("dataset", METHODS)
def test_every_method_is_there(dataset: str) -> None:
    assert {row.method for row in rows(dataset)} == METHODS[dataset]
    assert len(rows(dataset)) == COUNTS[dataset]


def test_no_data_set_is_forgotten() -> None:
    assert datasets() == list(METHODS)
    with pytest.raises(KeyError):
        rows("mnist")


@pytest.mark.parametrize(
    ("dataset", "method", "fields", "metrics"),
    [
        ("cifar10", "EDM", {"nfe": 35}, {"frechet_distance": 1.79, "recall": 0.63}),
        ("cifar10", "forward-KL", {"gan": True}, {"frechet_distance": 1.92, "recall": 0.62}),
        ("cifar10", "squared Hellinger", {"gan": False}, {"frechet_distance": 3.81}),
        ("imagenet64", "Jensen-Shannon", {}, {"frechet_distance": 1.16, "recall": 0.66}),
        (
            "coco30k",
            "Jensen-Shannon",
            {"cfg": 1.75, "gan": True},
            {"frechet_distance": 7.42, "clip_score": 0.292, "latency_seconds": 0.09},
        ),
        (
            "coco30k",
            "Stable Diffusion v1.5",
            {"nfe": 200},
            {"frechet_distance": 7.21, "clip_score": 0.301, "latency_seconds": 10.25},
        ),
        ("parti", "Jensen-Shannon", {"cfg": 1.75}, {"in_batch_similarity": 0.41}),
        (
            "hpsv2",
            "SwiftBrush v2",
            {},
            {
                "hps_anime": 27.25,
                "hps_photo": 27.62,
                "hps_concept-art": 26.86,
                "hps_paintings": 26.77,
            },
        ),
    ],
)
def test_figures_are_the_papers(dataset: str, method: str, fields: dict, metrics: dict) -> None:
    assert find(dataset, method, **fields).metrics == metrics


def test_every_student_makes_a_picture_in_one_step() -> None:
    for dataset in datasets():
        assert {row.nfe for row in rows(dataset) if row.kind == "paper"} == {1}


@pytest.mark.parametrize(
    "wrong",
    [
        {"metrics": {"fid": 2.0}},
        {"metrics": {}},
        {"metrics": {"recall": "0.6"}},
        {"kind": "ours"},
        {"steps": 4},
        {"nfe": 0},
    ],
)
def test_the_schema_is_strict(wrong: dict) -> None:
    good = {"kind": "paper", "method": "a", "metrics": {"recall": 0.6}}
    Row.model_validate(good)
    with pytest.raises(ValidationError):
        Row.model_validate(good | wrong)
