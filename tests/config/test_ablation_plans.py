"""Plans of ablations: what is wrong with one is told when it is read."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from stack.arguments.evaluation import MEASURES, add_evaluate
from stack.config.ablation import Evaluated, Measured, Metric, Plan, load_plan
from stack.util.errors import UserError

PLAN: dict[str, Any] = {
    "name": "tiny",
    "recipe": "some.yaml",
    "seeds": [0, 1],
    "axes": {"divergence": {"rkl": [], "js": []}, "GAN loss": {"without": [], "with": []}},
    "baseline": {"divergence": "rkl"},
    "evaluate": {"samples": 50},
    "metrics": {"distance": "student.frechet_distance"},
}


def write_plan(folder: Path, **changes: Any) -> Path:
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(PLAN | changes, sort_keys=False))
    return path


def at(where: str) -> dict[str, Any]:
    return {"metrics": {"x": where}}


FORM = "must be log:NAME, or log:NAME@SHARE with 0 < SHARE <= 1"
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"seeds": []}, "seeds: "),
    ({"seeds": [1, 1]}, "seeds: [1, 1] has one twice"),
    ({"seeds": [-1]}, "seeds.0: input should be greater than or equal to 0 (got -1)"),
    ({"axis": {}}, "axis: unknown field; did you mean axes?"),
    ({"baseline": [{}]}, "has one twice, or an empty one"),
    ({"baseline": [{"GAN loss": "with"}] * 2}, "has one twice, or an empty one"),
    ({"baseline": [{"divergence": "rkl"}, {"GAN": "with"}]}, "baseline: GAN: not an axis"),
    ({"baseline": {"GAN": "with"}}, "baseline: GAN: not an axis"),
    ({"baseline": {"GAN loss": "none"}}, "baseline: GAN loss: none: not a value"),
    ({"axes": {"a": {"x y": [], "x_y": []}}, "baseline": {}}, "axes: two cells would be in x_y"),
    (
        {"evaluate": {"sample": 9}},
        "evaluate.sample: not an option of stack evaluate; did you mean samples?",
    ),
    ({"evaluate": {"json": "a"}}, "evaluate.json: not an option of stack evaluate; take it out"),
    ({"evaluate": {"samples": 0}}, "evaluate.samples: input should be greater than 0 (got 0)"),
    ({"evaluate": {"teacher": "dde"}}, "evaluate.teacher: "),
    ({"evaluate": {"measure": "recal"}}, "evaluate.measure: "),
    (at("student.recal"), "metrics.x.at: student.recal: 'recal' is not in an evaluation.json; did"),
    (at("studnet.recall"), "studnet.recall: 'studnet' is not in an evaluation.json; did you mean"),
    (at("recall"), "recall: 'recall' is not in an evaluation.json; must be one of student, "),
    (at("student"), "student: '' is not in an evaluation.json"),
    (at("log:"), FORM),
    (at("log:loss/gap@"), FORM),
    (at("log:loss/gap@0"), FORM),
    (at("log:loss/gap@0.0"), FORM),
    (at("log:loss/gap@1.5"), FORM),
    (at("log:loss/gap@25%"), FORM),
    (at("log:levels/h"), "log:levels/h: a table, not a number"),
    ({"metrics": {"x": {"at": "log:a", "compare": "sum"}}}, "metrics.x.compare: "),
    ({"metrics": {"x": {"compare": "ratio"}}}, "metrics.x.at: field required"),
    ({"evaluate": None}, "metrics: distance: student.frechet_distance: evaluate is null"),
    (
        {"evaluate": {"teacher": "none"}, **at("teacher.recall")},
        "metrics: x: teacher.recall: needs the teacher; evaluate.teacher is none",
    ),
    ({"evaluate": {"teacher": "none"}, **at("speedup")}, "metrics: x: speedup: needs the teacher"),
    (at("teacher_sde.recall"), "teacher_sde.recall: 'teacher_sde' is not in an evaluation.json"),
    (
        {"evaluate": {"measure": "recall"}},
        "metrics: distance: student.frechet_distance: is not measured; evaluate.measure is recall",
    ),
    (
        {"evaluate": {"measure": "recall"}, **at("student.intervals.precision.low")},
        "metrics: x: student.intervals.precision.low: is not measured; evaluate.measure is recall",
    ),
    (
        {"evaluate": {"measure": "recall"}, **at("student.hps_anime")},
        "metrics: x: student.hps_anime: is not measured; evaluate.measure is recall",
    ),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_a_broken_plan_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write_plan(tmp_path, **changes)
    with pytest.raises(UserError) as caught:
        load_plan(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def plan_of(folder: Path, **changes: Any) -> Plan:
    return load_plan(write_plan(folder, **changes))


def test_options_are_those_that_stack_evaluate_takes() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    add_evaluate(parser)
    options = [action for action in parser._actions if action.option_strings]
    assert {action.dest for action in options} - {"json"} == set(Evaluated.model_fields)
    assert set(get_args(Measured)) == set(MEASURES)
    for action in options:
        if action.nargs == 0:
            assert Evaluated.model_validate({action.dest: True}), action.dest
            with pytest.raises(ValueError, match="bool"):
                Evaluated.model_validate({action.dest: "some"})


def test_options_are_as_given(tmp_path: Path) -> None:
    given = {"samples": 50, "teacher": "none", "hps-tokenizer": "clip", "bf16": True}
    expected = {"samples": 50, "teacher": "none", "hps_tokenizer": "clip", "bf16": True}
    assert plan_of(tmp_path, evaluate=given).options == expected
    assert plan_of(tmp_path, evaluate={}).options == {}
    assert plan_of(tmp_path, evaluate=None, **at("log:a")).options is None


@pytest.mark.parametrize("name", MEASURES)
def test_every_measure_can_be_named(name: str) -> None:
    for where in (f"student.{name}", f"teacher.{name}", f"student.intervals.{name}.low"):
        assert Metric(at=where).logged is None


LOGGED = {
    "log:loss/gap": ("loss/gap", None),
    "log:h/variance/3@0.25": ("h/variance/3", 0.25),
    "log:loss/gap@.5": ("loss/gap", 0.5),
    "log:loss/gap@1": ("loss/gap", 1.0),
}


@pytest.mark.parametrize("where", LOGGED)
def test_where_a_logged_figure_is(where: str) -> None:
    assert Metric(at=where).logged == LOGGED[where]


def test_a_metric_is_compared_as_the_plan_says_unless_it_says_otherwise(tmp_path: Path) -> None:
    metrics = {"a": "log:a", "b": {"at": "log:b", "compare": "ratio"}, "c": {"at": "log:c"}}
    plan = plan_of(tmp_path, compare="difference", metrics=metrics)
    assert plan.compared() == {"a": "difference", "b": "ratio", "c": "difference"}
    plain = plan_of(tmp_path)
    assert plain.compared() == {"distance": "ratio"}
    assert plain.metrics["distance"].at == "student.frechet_distance"
