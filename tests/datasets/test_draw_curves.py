"""The script that draws the README's curves: every line of the metrics is a point of the picture."""

import json
import runpy
from pathlib import Path
from xml.etree import ElementTree

SCRIPT = Path(__file__).parents[2] / "data" / "draw_curves.py"
LINES = [
    {"step": 50, "epoch": 0.5, "loss": 2.0},
    {"step": 100, "epoch": 1.0, "loss": 1.0},
    {"step": 100, "validation_loss": 1.1, "validation_accuracy": 0.5},
    {"step": 200, "epoch": 2.0, "loss": 0.0},
    {"step": 200, "validation_loss": 0.9, "validation_accuracy": 0.75},
]


def points(line: ElementTree.Element) -> list[tuple[float, ...]]:
    return [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]


def test_every_line_of_the_metrics_is_a_point(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, LINES)) + "\n")
    root = ElementTree.fromstring(runpy.run_path(str(SCRIPT))["draw"](tmp_path))
    losses, accuracies = (points(line) for line in root.iter("{http://www.w3.org/2000/svg}polyline"))
    (left, top), *_, (right, bottom) = losses
    assert len(losses) == 3
    assert losses[1] == ((left + (right - left) / 3), (top + bottom) / 2)
    assert len(accuracies) == 2
    assert accuracies[1][1] < accuracies[0][1]
    assert [round((x - accuracies[0][0]) / (right - left), 2) for x, _ in accuracies] == [0, 0.67]
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"training loss", "validation accuracy, %", "epoch", "0.5", "2"} <= set(texts)
