"""The figure of a population shows what its ranking says."""

import pytest

from mpinn.analysis.landscape import landscape


def row(number: int, width: int, activation: str, accuracy: str, layers: int = 1) -> dict[str, str]:
    return {"member": str(number), "width": str(width), "activation": activation, "layers": str(layers),
            "validation_accuracy": accuracy, "validation_loss": "0.5"}  # fmt: skip


ROWS = [
    row(3, 4, "relu", "0.95"), row(2, 4, "relu", "0.85"), row(7, 2, "tanh", "0.80"), row(1, 2, "relu", "0.70"),
    row(5, 4, "tanh", "0.60"), row(9, 2, "relu", ""),
]  # fmt: skip


def test_lines_are_means_over_equal_members_and_the_best_is_marked() -> None:
    (ax,) = landscape(ROWS).axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
    assert lines["relu"] == [[2, 0.7], [4, pytest.approx(0.9)]]
    assert lines["tanh"] == [[2, 0.8], [4, 0.6]]
    assert lines["best: member 3"] == [[4, 0.95]]
    assert ax.get_ylabel() == "validation accuracy, %"


def test_numbers_of_layers_stand_side_by_side() -> None:
    one, three = landscape([*ROWS, row(11, 4, "relu", "0.9", layers=3)]).axes
    assert one.get_xlabel() == "hidden units"
    assert three.get_xlabel() == "hidden units in each of 3 layers"
    assert len(three.lines) == 1


def test_without_accuracies_losses_are_shown() -> None:
    (ax,) = landscape([{**row(1, 4, "relu", ""), "validation_loss": "0.25"}]).axes
    assert ax.get_ylabel() == "validation loss"
    assert ax.lines[0].get_ydata().tolist() == [0.25]
