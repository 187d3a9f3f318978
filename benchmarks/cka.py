#!/usr/bin/env python
"""Measures time and memory of CKA as the number of samples grows, for several implementations.

They are: this project's, O(n d^2); the direct formula on n x n matrices, as a reader of the paper
would write it; and, if they are installed, the functions of two public packages that take features:
`pytorch-cka` (`cka.cka_from_features`) and `ckatorch` (`cka_batch`, in float64). All estimate the
same: CKA of unbiased HSIC with a linear kernel. A line below the table says how far their values
differ. Left out are `cka_base` of ckatorch, which is biased by default, and packages that can only
run whole models (`torch-cka`, `cka-pytorch`).

It prints a Markdown table: the median of several rounds in random order, and the most bytes that
tensors hold during a call beyond the inputs. Implementations other than this project's stop if four
n x n matrices of float32 would take 2 GiB, or after a call that took longer than --limit.
"""

import argparse
import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from types import ModuleType

import torch
from measure import interleave, peak_bytes
from tabulate import tabulate
from torch import Tensor

from dpk_det.distill import linear_cka

CKA = Callable[[Tensor, Tensor], Tensor]


def direct_cka(x: Tensor, y: Tensor) -> Tensor:
    """Compute CKA from the kernel matrices, O(n^2 d)."""
    n = len(x)
    kernels = [(z @ z.T).fill_diagonal_(0) for z in (x, y)]

    def hsic(a: Tensor, b: Tensor) -> Tensor:
        rows_a, rows_b = a.sum(1), b.sum(1)
        term = rows_a.sum() * rows_b.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * rows_a @ rows_b
        return ((a * b).sum() + term) / (n * (n - 3))

    k, m = kernels
    return hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt()


# package -> module to import, and its CKA of (n, d) and (n, e)
PACKAGES: dict[str, tuple[str, Callable[[ModuleType], CKA]]] = {
    "pytorch-cka": ("cka", lambda package: package.cka_from_features),
    "ckatorch": ("ckatorch", lambda package: lambda x, y: package.cka_batch(x[None], y[None])),
}


def public_functions() -> dict[str, CKA]:
    """Return the CKA functions of the public packages that are installed."""
    imported = {name: import_other(module) for name, (module, _) in PACKAGES.items()}
    return {name: PACKAGES[name][1](package) for name, package in imported.items() if package}


def import_other(name: str) -> ModuleType | None:
    """Import a package, but not from this folder: this file has the name of a package."""
    here, path = Path(__file__).parent, sys.path
    sys.path = [x for x in path if Path(x).resolve() != here]
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
    finally:
        sys.path = path


def measure(
    functions: Mapping[str, CKA], n: int, channels: int, repeats: int, device: str
) -> dict[str, tuple[float, int, float]]:
    """Return seconds, bytes and the value of each function.

    Args:
        functions: functions by name.
        n: number of samples.
        channels: d of both inputs. The second is the first plus as much noise.
        repeats: number of rounds.
        device: "cuda" or "cpu".
    """
    torch.manual_seed(n)
    x, noise = (torch.randn(n, channels, device=device) for _ in range(2))
    y = x + noise
    calls = {name: lambda f=f: f(x, y) for name, f in functions.items()}
    times = interleave(calls, repeats, warmup=1)
    return {
        name: (median(t.wall for t in times[name]), peak_bytes(call, device), call().item())
        for name, call in calls.items()
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--most", type=int, default=2**17, help="samples (default: %(default)s)")
    parser.add_argument(
        "--limit", type=float, default=2, help="seconds after which others stop (default: 2)"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    of_matrices = {"direct": direct_cka, **public_functions()}
    names = ["ours", *of_matrices]
    rows, apart, too_slow = [], 0.0, set()
    for n in (2**k for k in range(8, args.most.bit_length())):
        small = 4 * n * n * 4 < 2 * 2**30  # four n x n matrices of float32
        functions = {"ours": linear_cka, **(of_matrices if small else {})}
        functions = {name: f for name, f in functions.items() if name not in too_slow}
        found = measure(functions, n, args.channels, args.repeats, args.device)
        too_slow |= {x for x, (t, _, _) in found.items() if t > args.limit and x != "ours"}
        ours = found["ours"]
        apart = max(apart, *(abs(value - ours[2]) for _, _, value in found.values()))
        times = [f"{1e3 * found[x][0]:.2f}" if x in found else "" for x in names]
        peaks = [f"{found[x][1] / 2**20:.1f}" if x in found else "" for x in names]
        rows.append([n, f"{1e9 * ours[0] / n:.0f}", *times, *peaks])
    headers = ["n", "ours, ns a sample", *(f"{x}, {u}" for u in ("ms", "MB") for x in names)]
    device = f"{args.device}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"{args.channels} channels; {device}\n")
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))
    print(f"\nvalues: at most {apart:.1e} from ours")
    for name in PACKAGES:
        if name not in of_matrices:
            print(f"not run: {name} (not installed)")


if __name__ == "__main__":
    main()
