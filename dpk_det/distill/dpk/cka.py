"""Linear CKA from unbiased HSIC, in O(n d^2) time and without an n x n matrix.

CKA is from Kornblith et al. (ICML 2019, arXiv:1905.00414); the authors' code is
representation_similarity/ in google-research/google-research on GitHub. HSIC is the unbiased
estimator of Song et al. (JMLR 2012) in the form of Nguyen, Raghu and Kornblith (ICLR 2021,
arXiv:2010.15327, equation 3). With a linear kernel it does not change when a constant is added to
every row of an input, so the rows are centred first. This makes ``X'1 = 0``, hence ``K~1 = -k``
with ``k_i = |x_i|^2``, and the three terms of the equation shrink to

    HSIC(K, L) = [ |X'Y|_F^2 - n/(n-2) sum_i k_i l_i + sum(k) sum(l) / ((n-1)(n-2)) ] / (n (n-3))

Centring also keeps large means from cancelling each other in float32. If there are no more rows
than features (whole images), the n x n matrices are computed instead.

Shapes: n samples, d features of X, e features of Y, L levels.
"""

from collections import deque
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dpk_det.distill.late import Late

MIN_SAMPLES = 4  # the estimator divides by n - 3


def hsic_terms(
    x: Tensor,
    y: Tensor,
    valid: Tensor | None = None,
    n: int | None = None,
) -> Tensor:
    """HSIC(K, L), HSIC(K, K) and HSIC(L, L) of the linear kernels K = X X' and L = Y Y'.

    Args:
        x: (n, d) samples; computed in float32 (float64 stays float64), also under autocast.
        y: (n, e) the same samples, seen by the other network.
        valid: (n,) bool, the rows that count; all when None.
        n: number of rows that count, if the caller knows it; saves a device synchronisation.

    Returns:
        (3,) tensor of the three estimates, each of which may be negative by chance.

    Raises:
        ValueError: when fewer than 4 rows count.
    """
    if n is None:
        n = len(x) if valid is None else int(valid.sum())
    if n < MIN_SAMPLES:
        raise ValueError(f"CKA needs at least {MIN_SAMPLES} samples but got {n}: give it more.")
    with torch.autocast(x.device.type, enabled=False):
        return _linear_terms(*_centre(x, y, valid, n), n)


def cka_from_terms(terms: Tensor) -> Tensor:
    """CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)).

    Args:
        terms: (..., 3) as :func:`hsic_terms` returns them, or averages of these.

    Returns:
        (...) CKA, at most 1. If the features of a network are constant, it is 0, never NaN.
    """
    cross, x_self, y_self = terms.unbind(-1)
    scale = x_self.clamp(min=0).sqrt() * y_self.clamp(min=0).sqrt()
    has_scale = scale > torch.finfo(terms.dtype).tiny
    cka = torch.where(has_scale, cross, 0) / torch.where(has_scale, scale, 1)
    return cka.clamp(-1, 1)


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased linear CKA of two sets of features of the same samples.

    Args:
        x: (n, d) features; n is at least 4.
        y: (n, e) features.

    Returns:
        A scalar: 1 for features that are equal up to rotation, shift and scale; 0 within noise for
        unrelated features.

    Raises:
        ValueError: when n is below 4.
    """
    return cka_from_terms(hsic_terms(x, y))


class MinibatchCKA(nn.Module):
    """CKA of L levels over the recent steps: the HSIC terms are averaged, then divided.

    The average of ratios is biased for small batches, the ratio of averages is not (Nguyen, Raghu
    and Kornblith, ICLR 2021, section 3). The average is exponential. It is kept in a buffer, so
    that a checkpoint resumes it, and taken over all ranks, so that they agree. It starts at zero
    and needs no correction, because the same factor cancels in the division.

    Args:
        num_levels: L.
        window: steps that the average looks back on: each measurement weighs ``1 - every/window``
            times the next one. With 1, only the last measurement counts.
        every: steps from one measurement to the next; the first step measures.
    """

    def __init__(self, num_levels: int, window: int, every: int = 1) -> None:
        super().__init__()
        self.share = min(every / window, 1.0)  # weight of a measurement in the average
        self.every = every
        self.register_buffer("terms", torch.zeros(num_levels, 3))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self._step = 0  # the same number, on the host
        self._recent: deque[Late] = deque(maxlen=2)  # results of the last two updates

    @torch.no_grad()
    def update(self, samples: Iterable[tuple[Tensor, Tensor, Tensor | None, int]]) -> Tensor:
        """Take in one step's samples and return the CKA of each level.

        Args:
            samples: for each level the arguments of :func:`hsic_terms`. A level with fewer than 4
                samples in this step keeps its average (0 if it never had 4). If samples is a
                generator, it computes nothing in steps that do not measure.

        Returns:
            (L,) float32, the same on all ranks.
        """
        if not self._recent:
            self._step = int(self.step)
            if self._step:  # from a checkpoint
                self._recent.append(Late(cka_from_terms(self.terms)))
        is_due = self._step % self.every == 0
        if is_due:
            self._measure(samples)
        cka = cka_from_terms(self.terms)
        self._recent.append(Late(cka) if is_due else self._recent[-1])
        self._step += 1
        self.step += 1
        return cka

    def _measure(self, samples: Iterable[tuple[Tensor, Tensor, Tensor | None, int]]) -> None:
        nothing = self.terms.new_full((3,), torch.nan)
        terms = torch.stack(
            [hsic_terms(*sample) if sample[-1] >= MIN_SAMPLES else nothing for sample in samples]
        )
        seen = terms.isfinite().all(1, keepdim=True)  # a step that overflowed is not counted
        # three terms, and how many ranks saw them
        news = torch.cat([terms.where(seen, 0).float(), seen], 1)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(news)
        ranks = news[:, 3:]
        mean = news[:, :3] / ranks.clamp(min=1)
        self.terms.copy_(torch.where(ranks > 0, self.terms.lerp(mean, self.share), self.terms))

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._recent.clear()  # the next update starts from the loaded buffers

    def before(self) -> Tensor:
        """(L,) the result of the update before the last one, on the CPU, without waiting for it.

        If there was only one update so far, it is the result of that update.
        """
        return self._recent[0].read()


def _centre(x: Tensor, y: Tensor, valid: Tensor | None, n: int) -> tuple[Tensor, Tensor]:
    widths = x.shape[1], y.shape[1]
    z = torch.cat([z if z.dtype == torch.float64 else z.float() for z in (x, y)], 1)
    # One row is subtracted first. The mean of equal rows has a rounding error, which would look
    # like signal; after this step, equal rows are exactly 0.
    if valid is None:
        z = z - z[:1]
        return (z - z.mean(0)).split(widths, 1)
    w = valid.unsqueeze(1)
    z = torch.where(w, z - z.index_select(0, valid.byte().argmax(0, keepdim=True)), 0)
    # as zeros, rows that do not count add nothing to any term
    return torch.where(w, z - z.sum(0) / n, 0).split(widths, 1)


def _linear_terms(x: Tensor, y: Tensor, n: int) -> Tensor:
    if len(x) <= min(x.shape[1], y.shape[1]):
        return _gram_terms(x @ x.T, y @ y.T, n)
    k, l = x.square().sum(1), y.square().sum(1)  # noqa: E741 (the paper's names)
    cross = torch.stack([(a.T @ b).square().sum() for a, b in ((x, y), (x, x), (y, y))])
    trace = torch.stack([k * l, k * k, l * l]).sum(1)
    k_sum, l_sum = k.sum(), l.sum()
    sums = torch.stack([k_sum * l_sum, k_sum * k_sum, l_sum * l_sum])
    return (cross - n / (n - 2) * trace + sums / ((n - 1) * (n - 2))) / (n * (n - 3))


def _gram_terms(k: Tensor, l: Tensor, n: int) -> Tensor:  # noqa: E741 (the paper's name)
    k, l = (z - z.diag().diag() for z in (k, l))  # noqa: E741
    return torch.stack([_gram_hsic(k, l, n), _gram_hsic(k, k, n), _gram_hsic(l, l, n)])


def _gram_hsic(k: Tensor, l: Tensor, n: int) -> Tensor:  # noqa: E741
    """Equation 3 itself, for matrices with zero diagonal."""
    k_sums, l_sums = k.sum(1), l.sum(1)
    trace = (k * l).sum()
    sums = k_sums.sum() * l_sums.sum() / ((n - 1) * (n - 2))
    return (trace + sums - 2 / (n - 2) * (k_sums * l_sums).sum()) / (n * (n - 3))
