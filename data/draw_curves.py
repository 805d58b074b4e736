"""Draw the loss and the validation accuracy of a run as a picture.

python data/draw_curves.py runs/mnist data/mnist.svg
"""

import json
import sys
from math import floor, log10
from pathlib import Path

WIDTH, HEIGHT = 800, 260
LEFT, TOP, ACROSS, DOWN, APART = 50, 30, 330, 180, 390

Point = tuple[float, float]


def read_curves(run: Path) -> tuple[list[Point], list[Point]]:
    """(epoch, training loss) and (epoch, validation accuracy in percent)."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "epoch" in line]
    epochs = logged[-1]["epoch"] / logged[-1]["step"]
    losses = [(line["epoch"], line["loss"]) for line in logged]
    return losses, [
        (line["step"] * epochs, 100 * line["validation_accuracy"]) for line in lines if "validation_accuracy" in line
    ]


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers from ``low`` to ``high``."""
    raw = (high - low) / 5
    power = 10.0 ** floor(log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    first = -int(-low // step) if low % step == 0 else int(low // step) + 1
    return [k * step for k in range(first, int(high / step + 1e-9) + 1)]


def panel(left: int, title: str, points: list[Point], low: float, high: float) -> list[str]:
    """One curve in its axes; the range of x is from 0 to the last point."""
    last = points[-1][0]

    def place(x: float, y: float) -> str:
        return f"{left + ACROSS * x / last:.1f},{TOP + DOWN * (high - y) / (high - low):.1f}"

    drawn = [f'<text x="{left}" y="{TOP - 10}" font-weight="bold">{title}</text>']
    for y in ticks(low, high):
        at = TOP + DOWN * (high - y) / (high - low)
        drawn.append(f'<path d="M{left} {at:.1f}h{ACROSS}" stroke="#ddd"/>')
        drawn.append(f'<text x="{left - 6}" y="{at + 4:.1f}" text-anchor="end">{y:g}</text>')
    for x in ticks(0, last):
        at = left + ACROSS * x / last
        drawn.append(f'<text x="{at:.1f}" y="{TOP + DOWN + 18}" text-anchor="middle">{x:g}</text>')
    drawn.append(f'<text x="{left + ACROSS / 2}" y="{TOP + DOWN + 36}" text-anchor="middle">epoch</text>')
    curve = " ".join(place(x, min(high, max(low, y))) for x, y in points)
    return [*drawn, f'<polyline points="{curve}" fill="none" stroke="#06c" stroke-width="1.5"/>']


def draw(run: Path) -> str:
    """The picture as SVG; accuracies are shown from the lowest one on, losses from zero."""
    losses, accuracies = read_curves(run)
    least = min(accuracy for _, accuracy in accuracies)
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        *panel(LEFT, "training loss", losses, 0, max(loss for _, loss in losses)),
        *panel(LEFT + APART, "validation accuracy, %", accuracies, least - (100 - least) * 0.1, 100),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(draw(Path(sys.argv[1])))
