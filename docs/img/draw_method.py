#!/usr/bin/env python
"""Draw how DPK works at one level: python docs/img/draw_method.py docs/img/method.svg"""

import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ACCENT, TEACHER, GREY = "#1864ab", "#2b8a3e", "#5c5c58"
# name: place (x, y), text, colour
BOXES = {
    "student": (0, 2, "student's map", ACCENT),
    "teacher": (0, 0, "teacher's map\n(no gradient)", TEACHER),
    "gap": (2.0, 1, "gap: r = 1 - CKA\nrandom mask", GREY),
    "own": (3.9, 2, "tokens\n(1 - r of them)", ACCENT),
    "prior": (3.9, 0, "tokens\n(r of them: the prior)", TEACHER),
    "hybrid": (5.9, 1, "hybrid of both\ndecoder", GREY),
    "completed": (7.7, 1, "completed\nmap", ACCENT),
    "loss": (9.4, 1, "loss_dpk", GREY),
}
# from, to, text, how it bends
ARROWS = [
    ("student", "gap", "", 0),
    ("teacher", "gap", "", 0),
    ("student", "own", "", 0),
    ("teacher", "prior", "", 0),
    ("gap", "own", "", 0),
    ("gap", "prior", "", 0),
    ("own", "hybrid", "", 0),
    ("prior", "hybrid", "", 0),
    ("hybrid", "completed", "", 0),
    ("completed", "loss", "", 0),
    ("student", "completed", "shortcut (not in the paper)", -0.32),
    ("teacher", "loss", "target", 0.3),
]


def main() -> None:
    """Draw."""
    figure, axes = plt.subplots(figsize=(11, 3.9))
    axes.set(xlim=(-0.9, 10.2), ylim=(-1.9, 3.9))
    patches = {}
    for name, (x, y, text, colour) in BOXES.items():
        box = {"boxstyle": "round,pad=0.45", "fc": "white", "ec": colour, "lw": 1.8}
        drawn = axes.text(x, y, text, ha="center", va="center", fontsize=10, bbox=box, zorder=3)
        patches[name] = drawn.get_bbox_patch()
    figure.canvas.draw()  # which gives the boxes their sizes
    for start, end, text, bend in ARROWS:
        (x0, y0), (x1, y1) = BOXES[start][:2], BOXES[end][:2]
        style = {
            "arrowstyle": "-|>",
            "color": GREY,
            "connectionstyle": f"arc3,rad={bend}",
            "patchA": patches[start],
            "patchB": patches[end],
        }
        axes.annotate("", (x1, y1), (x0, y0), arrowprops=style)
        if text:
            across = 0.5 * abs(bend) * (x1 - x0)  # how far the arc leaves the straight line
            high = (y0 + y1) / 2 + (across + 0.15 if bend < 0 else -across - 0.3)
            axes.text((x0 + x1) / 2, high, text, ha="center", fontsize=9, color=GREY)
    axes.set_axis_off()
    figure.savefig(sys.argv[1], bbox_inches="tight", facecolor="white", metadata={"Date": None})


if __name__ == "__main__":
    main()
