"""Columns of a grid of classes."""

from __future__ import annotations

import pytest

from stack.sample.class_to_image import grid_classes


@pytest.mark.parametrize("classes", [1, 3, 4, 7, 10, 1000])
def test_a_column_has_one_class(classes: int) -> None:
    found = grid_classes(classes)
    assert len(found) == 40
    columns = [{*found[column::10]} for column in range(10)]
    assert all(len(column) == 1 for column in columns)
    assert len(set.union(*columns)) == min(classes, 10)


def test_without_classes_nothing_is_asked_for() -> None:
    assert {*grid_classes(0)} == {""}
