#!/usr/bin/env python
"""How the cost of CKA grows with the number of samples, beside the direct n x n formula.

Prints a Markdown table: the median of several runs, interleaved. The direct formula stops where its
matrices would take more than 2 GiB.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from tabulate import tabulate
from torch import Tensor

from dpk_det.distill import linear_cka


def direct_cka(x: Tensor, y: Tensor) -> Tensor:
    """CKA from the kernel matrices themselves, O(n^2 d)."""
    n = len(x)
    kernels = [(z @ z.T).fill_diagonal_(0) for z in (x, y)]

    def hsic(a: Tensor, b: Tensor) -> Tensor:
        rows_a, rows_b = a.sum(1), b.sum(1)
        term = rows_a.sum() * rows_b.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * rows_a @ rows_b
        return ((a * b).sum() + term) / (n * (n - 3))

    k, m = kernels
    return hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt()


def seconds(function: Callable[[], Tensor], device: str) -> float:
    """Wall time of one call, the device's queue emptied before and after."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    rows = []
    for n in (2**k for k in range(8, 18)):
        x, y = (torch.randn(n, args.channels, device=args.device) for _ in range(2))
        functions = {"ours": linear_cka}
        if 4 * n * n * 4 < 2 * 2**30:  # four n x n matrices of float32
            functions["direct"] = direct_cka
        times: dict[str, list[float]] = {name: [] for name in functions}
        for repeat in range(args.repeats + 1):
            for name, function in functions.items():
                elapsed = seconds(lambda f=function, x=x, y=y: f(x, y), args.device)
                if repeat:  # the first run warms up
                    times[name].append(elapsed)
        ours = median(times["ours"])
        direct = f"{1e3 * median(times['direct']):.2f}" if "direct" in times else ""
        rows.append([n, f"{1e3 * ours:.2f}", f"{1e9 * ours / n:.0f}", direct])
    headers = ["n", "ours, ms", "ours, ns a sample", "direct, ms"]
    print(f"{args.channels} channels, {args.device}, {torch.get_num_threads()} threads\n")
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
