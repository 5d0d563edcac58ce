"""The papers' formulas, and what the recipe language adds to them, in float64."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import field_formulas as field
import mergekit_formulas as mergekit
import torch
from torch import Tensor

from merge_plugins import Slot
from merge_plugins.calibration.losses import ExampleLoss
from merge_plugins.ops.random import drop_at_random, keep_at_random
from merge_plugins.testing import living
from merge_plugins.testing.case import statistic


def average(_: Tensor, x: Tensor, w: Tensor) -> Tensor:
    return x.mean(0)


def linear(_: Tensor, x: Tensor, w: Tensor) -> Tensor:
    return (w * x).sum(0) / w.sum()


def slerp(first: Tensor, second: Tensor, t: float, threshold: float = 0.9995) -> Tensor:
    cosine = (first * second).sum() / (first.norm() * second.norm())
    if abs(cosine) > threshold:
        return (1 - t) * first + t * second
    angle = torch.acos(cosine)
    return (torch.sin((1 - t) * angle) * first + torch.sin(t * angle) * second) / torch.sin(angle)


def top(d: Tensor, count: int) -> Tensor:
    """Return 1 for the count largest magnitudes, the first in memory of equal ones."""
    order = d.abs().reshape(-1).sort(descending=True, stable=True).indices
    return torch.zeros(d.numel()).index_fill(0, order[:count], 1.0).view_as(d).double()


def elect(d: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of weighted deltas with the majority's sign, and those who agree's weights."""
    sign = torch.where((w * d).sum(0) >= 0, 1.0, -1.0)
    agree = (d.sign() * w.sign() == sign) & (d != 0)
    return (w * d * agree).sum(0), (w * agree).sum(0)


def restored(kept: Tensor, d: Tensor, rescale: str, density: float) -> Tensor:
    """Return what was kept of each task vector, times the factor that makes up for the rest."""
    factors = {"inverse_keep": 1 / density, "none": 1.0}
    ratios = [a.abs().sum() / k.abs().sum() for a, k in zip(d, kept, strict=True)]
    return torch.stack([k * factors.get(rescale, r) for k, r in zip(kept, ratios, strict=True)])


def ties(
    b: Tensor,
    x: Tensor,
    w: Tensor,
    density: float,
    *,
    normalize: bool = True,
    rescale: str = "none",
) -> Tensor:
    trimmed = torch.stack(
        [d * top(d, max(int(density > 0), int(density * d.numel()))) for d in x - b]
    )
    trimmed = restored(trimmed, x - b, rescale, density)
    total, share = elect(trimmed, w)
    return b + (total / torch.where(share == 0, 1.0, share) if normalize else total)


def model_stock(b: Tensor, x: Tensor, w: Tensor) -> Tensor:
    t = share_of_mean(x - b)
    return t * x.mean(0) + (1 - t) * b


def share_of_mean(deltas: Tensor) -> Tensor:
    d, n = deltas.reshape(len(deltas), -1), len(deltas)
    pairs = list(itertools.combinations(range(n), 2))
    cosine = sum(torch.cosine_similarity(d[i], d[j], dim=0) for i, j in pairs) / len(pairs)
    return n * cosine / (1 + (n - 1) * cosine)


def mergellm_stock(b: Tensor, x: Tensor, w: Tensor) -> Tensor:
    t = share_of_mean(x - b).clamp(0, 1)
    return t * x.mean(0) + (1 - t) * b


def breadcrumbs(
    b: Tensor,
    x: Tensor,
    w: Tensor,
    density: float,
    gamma: float,
    *,
    elects: bool = False,
    normalize: bool = False,
) -> Tensor:
    n = b.numel()
    kept = torch.stack(
        [d * (top(d, int(gamma * n) + int(density * n)) - top(d, int(gamma * n))) for d in x - b]
    )
    total, share = elect(kept, w) if elects else ((w * kept).sum(0), w.sum(0))
    return b + (total / torch.where(share == 0, 1.0, share) if normalize else total)


def mergellm_breadcrumbs(
    b: Tensor, x: Tensor, w: Tensor, density: float, rate: float, scale: float
) -> Tensor:
    n = b.numel()
    n_small = int(n * rate)
    n_large = int(n * (1 - density)) - n_small
    kept = []
    for d in x - b:
        ascending = d.abs().reshape(-1).sort().values
        at_least = ascending[max(0, n_small - 1)]
        at_most = ascending[n - 1 - n_large]
        kept.append(d * (d.abs() >= at_least) * (d.abs() <= at_most))
    return b + scale * torch.stack(kept).sum(0)


def widen(b: Tensor, x: Tensor, w: Tensor, ratio: float, value: float) -> Tensor:
    """Return the paper's sec. 3.2 for a linear layer, and MergeLLM's rule for vectors."""
    if b.ndim < 2:
        return b + (calibrated((x - b).abs(), ratio, value) * (x - b)).sum(0)
    lengths = [a.norm(dim=-2, keepdim=True) for a in (b, *x)]
    directions = [a / m for a, m in zip((b, *x), lengths, strict=True)]
    stretched = torch.stack([(m - lengths[0]).abs() for m in lengths[1:]])
    turned = [1 - (d * directions[0]).sum(-2, keepdim=True) for d in directions[1:]]
    scores = sum(
        calibrated(change.argsort(stable=True).argsort() / b.shape[-1], ratio, value)
        for change in (stretched, torch.stack(turned))
    )
    return b + (scores / 2 * (x - b)).sum(0)


def calibrated(values: Tensor, ratio: float, value: float) -> Tensor:
    important = values > ratio * values.double().mean(-1, keepdim=True)
    return torch.where(important, value, values.double().softmax(0))


def mergellm_ties(b: Tensor, x: Tensor, w: Tensor, rate: float, scale: float) -> Tensor:
    trimmed = []
    for d in x - b:
        at = d.abs().reshape(-1).sort().values[max(1, int(d.numel() * rate)) - 1]
        trimmed.append(d * (d.abs() >= at))
    d = torch.stack(trimmed)
    sign = d.sum(0).sign()
    sign = torch.where(sign == 0, sign.sum().sign(), sign)
    agree = (d.sign() == sign) & (d != 0)
    return b + scale * (d * agree).sum(0) / agree.sum(0).clamp(min=1)


def drawn(b: Tensor, x: Tensor, density: float) -> Tensor:
    """Return the masks our own generator draws: their odds are tested in test_arithmetic."""
    slot = Slot("w", None, tuple(x.float()))
    return torch.stack(
        [drop_at_random(torch.ones(b.shape), slot, i, density) for i in range(len(x))]
    ).double()


def dare(b: Tensor, x: Tensor, w: Tensor, density: float, rescale: str, elects: bool) -> Tensor:
    kept = restored((x - b) * drawn(b, x, density), x - b, rescale, density)
    return b + (elect(kept, w)[0] if elects else (w * kept).sum(0))


def magprune(b: Tensor, x: Tensor, density: float, epsilon: float, by: str) -> Tensor:
    """Return 1 / keep probability where our own generator keeps an entry [MagPrune], else 0."""
    shape = (1, -1) if by == "weight" or b.ndim < 2 else (-1, b.shape[-1])
    slot, found = Slot("w", None, tuple(x.float())), []
    for i, d in enumerate(x - b):
        rows = d.abs().view(shape)
        if by == "size":
            least, most = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
            height = (rows - least) / (most - least)
        else:
            largest_first = rows.sort(descending=True, stable=True).indices
            height = 1 - largest_first.argsort() / (rows.shape[1] - 1)
        if rows.shape[1] == 1:
            height = torch.full_like(rows, 0.5)
        kept = (density - epsilon + 2 * epsilon * height).view(b.shape)
        mask = keep_at_random(torch.ones(b.shape), slot, i, kept.float())
        found.append(mask.double() / kept)
    return torch.stack(found)


def della(
    b: Tensor,
    x: Tensor,
    w: Tensor,
    *,
    rescale: str = "inverse_keep",
    linear: bool = False,
    by: str = "rank",
) -> Tensor:
    """Return DELLA's three steps at density 0.6 and epsilon 0.1: drop, elect, fuse."""
    factors = magprune(b, x, 0.6, 0.1, by)
    kept = (x - b) * (factors if rescale == "inverse_keep" else factors.sign())
    kept = restored(kept, x - b, "l1", 1.0) if rescale == "l1" else kept
    if linear:
        return b + (w * kept).sum(0)
    total, share = elect(kept, w)
    return b + total / torch.where(share == 0, 1.0, share)


def ties_row(b: Tensor, x: Tensor, w: Tensor, density: float) -> Tensor:
    rows = [d if d.ndim > 1 else d[None] for d in x - b]
    kept = [
        torch.cat([r * top(r, int(density * r.numel())) for r in d.flatten(0, -2)]) for d in rows
    ]
    total, share = elect(torch.stack(kept).view(x.shape), w)
    return b + total / torch.where(share == 0, 1.0, share)


def dare_averaged(b: Tensor, x: Tensor, w: Tensor, density: float, *, elects: bool) -> Tensor:
    kept = (x - b) * drawn(b, x, density) / density
    total, share = elect(kept, w) if elects else ((w * kept).sum(0), w.sum(0))
    return b + total / torch.where(share == 0, 1.0, share)


def trimmed_average(b: Tensor, x: Tensor, w: Tensor, density: float) -> Tensor:
    kept = torch.stack([d * top(d, max(int(density > 0), int(density * d.numel()))) for d in x - b])
    return b + (w * kept).sum(0) / w.sum()


def smallest_dropped(b: Tensor, x: Tensor, rate: float) -> Tensor:
    kept = []
    for d in x - b:
        ascending, n_dropped = d.abs().reshape(-1).sort().values, int(d.numel() * rate)
        mask = d.abs() > ascending[n_dropped - 1] if n_dropped else 1
        kept.append(b + d * mask)
    return torch.stack(kept)


def cocktail(b: Tensor, x: Tensor, w: Tensor, temperature: float) -> Tensor:
    loss, tokenizer = ExampleLoss(), living.tokenizer()
    losses = [loss(living.model(i), tokenizer, living.EXAMPLES) for i in range(len(x))]
    odds = [math.exp(-one / temperature) for one in losses]
    return sum(o / sum(odds) * one for o, one in zip(odds, x, strict=True))  # type: ignore[return-value]


def fisher(
    b: Tensor, x: Tensor, w: Tensor, c: Sequence[float], eps: float, *, normalize: bool = False
) -> Tensor:
    found = torch.stack([statistic("fisher", one.float()) for one in x]).double()  # type: ignore[arg-type]
    c = torch.tensor(c, dtype=torch.float64).view(-1, *[1] * b.ndim)
    if normalize:
        c = c / (found.reshape(len(x), -1).norm(dim=1).view_as(c) + eps)
    return (c * (found + eps) * x).sum(0) / (c * (found + eps)).sum(0)


def regmean(b: Tensor, x: Tensor, w: Tensor, ratio: float) -> Tensor:
    if b.ndim != 2:
        return x.mean(0)
    g = torch.stack([statistic("gram", one.float()) for one in x]).double()  # type: ignore[arg-type]
    g = ratio * g + (1 - ratio) * torch.diag_embed(g.diagonal(dim1=1, dim2=2))
    return (torch.linalg.inv(g.sum(0)) @ (g @ x.mT).sum(0)).mT


ORACLES: dict[str, list[tuple[dict[str, Any], Callable[..., Tensor]]]] = {
    "tsv": [
        ({"lambda": s}, lambda b, x, w, s=s: field.by_matrix(b, x, s, field.tsv)) for s in (1, 0.3)
    ],
    "iso_c": [({"lambda": 0.7}, lambda b, x, w: field.by_matrix(b, x, 0.7, field.iso_c))],
    "iso_cts": [
        (
            {"common_space_fraction": fraction},
            lambda b, x, w, f=fraction: field.by_matrix(b, x, 1.0, lambda t: field.iso_cts(t, f)),
        )
        for fraction in (0.8, 0.5, 1.0)
    ],
    "wudi": [
        (
            {"steps": 40, "learning_rate": rate, "lambda": 0.5},
            lambda b, x, w, r=rate: field.by_matrix(b, x, 0.5, lambda t: field.wudi(t, 40, r)),
        )
        for rate in (1e-5, 1e-2)
    ],
    "consensus": [
        (
            {"mask_lambda": (0.2, 0.4, 0.6), "threshold": k, "lambda": 0.5},
            lambda b, x, w, k=k: field.consensus(b, x, (0.2, 0.4, 0.6), k, 0.5),
        )
        for k in (1, 2, 3)
    ],
    "pcb": [
        (
            {"density": density, "scope": scope, "lambda": 0.5},
            lambda b, x, w, d=density: field.pcb(b, x, d, 0.5),
        )
        for density, scope in ((0.2, "model"), (0.6, "tensor"), (1.0, "model"))
    ],
    "emr": [({}, lambda b, x, w: b)],  # what its branches add: test_emr
    "adamerging": [
        ({"initial": 0.4}, lambda b, x, w: b + 0.4 * (x - b).sum(0)),  # as learned: test_adamerging
    ],
    "nuslerp": [
        ({"weight": (0.2, 0.6, 0.0)}, lambda b, x, w: mergekit.slerp(*x, 0.75)),
        (
            {"weight": (0.2, 0.6, 0.0), "on_base": True},
            lambda b, x, w: b + mergekit.slerp(*(x - b), 0.75),
        ),
        ({"weight": (0.5, -0.5, 0.0)}, lambda b, x, w: mergekit.slerp(*x, 0.5)),
        *(
            (
                {"nuslerp_flatten": False, "nuslerp_row_wise": dim == 0, "on_base": True},
                lambda b, x, w, dim=dim: b + mergekit.slerp(*(x - b), 0.5, dim),
            )
            for dim in (0, -1)
        ),
    ],
    "multislerp": [
        ({"weight": (1.0, 0.25, -0.5)}, lambda b, x, w: mergekit.multislerp(x, (1, 0.25, -0.5))),
        (
            {"weight": (1.0, 0.25, 0.5), "normalize_weights": False, "on_base": True},
            lambda b, x, w: b + mergekit.multislerp(x - b, (1, 0.25, 0.5), normalize=False),
        ),
    ],
    "karcher": [({"max_iter": n}, lambda b, x, w, n=n: mergekit.karcher(x, n)) for n in (0, 1, 10)],
    "sce": [
        ({"select_topk": topk}, lambda b, x, w, topk=topk: mergekit.sce(b, x, topk))
        for topk in (1.0, 0.6, 0.1, 0.0)
    ],
    "ram": [({"epsilon": 0.1}, lambda b, x, w: mergekit.ram(b, x, 0.1))],
    "ramplus_tl": [
        (
            {"epsilon": 0.1, "r": r, "alpha": alpha},
            lambda b, x, w, r=r, alpha=alpha: mergekit.ram(b, x, 0.1, r, alpha),
        )
        for r, alpha in ((0.1, 0.2), (0.5, 9.0))
    ],
    "nearswap": [({"t": t}, lambda b, x, w, t=t: mergekit.nearswap(b, x[0], t)) for t in (0, 0.05)],
    "arcee_fusion": [({}, lambda b, x, w: mergekit.arcee_fusion(b, x[0]))],
    "breadcrumbs_ties": [
        (
            {"density": 0.6, "gamma": 0.1, "normalize": normalize},
            lambda b, x, w, n=normalize: breadcrumbs(b, x, w, 0.6, 0.1, elects=True, normalize=n),
        )
        for normalize in (False, True)
    ],
    "linear": [({"weight": (1.0, 0.25, 0.5)}, linear)],
    "cocktail": [
        ({"temperature": t}, lambda b, x, w, t=t: cocktail(b, x, w, t)) for t in (0.5, 5.0)
    ],
    "average_merging": [({}, average)],
    "fisher_merging": [
        ({"minimal_fisher_weight": 1e-4}, lambda b, x, w: fisher(b, x, w, (1, 1, 1), 1e-4)),
        (
            {"fisher_scaling_coefficients": (0.5, 0.0, 0.3), "normalize_fisher_weight": True},
            lambda b, x, w: fisher(b, x, w, (0.5, 0.0, 0.3), 1e-6, normalize=True),
        ),
    ],
    "regmean_merging": [
        ({"reduce_non_diagonal_ratio": ratio}, lambda b, x, w, r=ratio: regmean(b, x, w, r))
        for ratio in (0.0, 0.9, 1.0)
    ],
    "passthrough": [({"scale": 0.3}, lambda b, x, w: 0.3 * x[0])],
    "slerp": [({"t": 0.3}, lambda b, x, w: slerp(b, x[0], 0.3))],
    "slerp_merging": [
        ({"slerp_t": 0.7}, lambda b, x, w: slerp(x[0], x[1], 0.7)),
        ({"dot_threshold": 0.5}, lambda b, x, w: (x[0] + x[1]) / 2),
    ],
    "task_arithmetic": [
        (
            {"weight": (1.0, 0.25, -0.5), "lambda": 0.7},
            lambda b, x, w: b + 0.7 * (w * (x - b)).sum(0),
        )
    ],
    "ties": [
        ({"weight": (1.0, 0.25, 0.5), "density": 0.3}, lambda b, x, w: ties(b, x, w, 0.3)),
        (
            {"density": 0.6, "normalize": False},
            lambda b, x, w: ties(b, x, w, 0.6, normalize=False),
        ),
        (
            {"density": 0.6, "rescale": "l1"},
            lambda b, x, w: ties(b, x, w, 0.6, rescale="l1"),
        ),
    ],
    "dare_linear": [
        (
            {"density": 0.4, "rescale": how},
            lambda b, x, w, how=how: dare(b, x, w, 0.4, how, elects=False),
        )
        for how in ("l1", "inverse_keep", "none")
    ],
    "dare_ties": [
        (
            {"density": 0.4, "rescale": how},
            lambda b, x, w, how=how: dare(b, x, w, 0.4, how, elects=True),
        )
        for how in ("l1", "inverse_keep", "none")
    ],
    "della": [
        ({"drop_rate": 0.4, "window_size": 0.2}, della),
        ({"density": 0.6, "epsilon": 0.1}, functools.partial(della, rescale="l1")),
        (
            {"drop_rate": 0.4, "window_size": 0.2, "rescale": "none"},
            functools.partial(della, rescale="none"),
        ),
    ],
    "della_linear": [
        (
            {"density": 0.6, "epsilon": 0.1, "rescale": how},
            functools.partial(della, rescale=how, linear=True),
        )
        for how in ("l1", "inverse_keep", "none")
    ],
    "della_norank": [
        ({"density": 0.6, "window_size": 0.2}, functools.partial(della, by="size")),
        (
            {"density": 0.6, "window_size": 0.2, "rescale": "l1"},
            functools.partial(della, by="size", rescale="l1"),
        ),
    ],
    "della_layer_norm": [
        ({"drop_rate": 0.4, "epsilon": 0.1}, functools.partial(della, by="weight")),
        (
            {"drop_rate": 0.4, "epsilon": 0.1, "rescale": "l1"},
            functools.partial(della, by="weight", rescale="l1"),
        ),
    ],
    "nodrop_elect": [({"weight": (1.0, 0.25, 0.5)}, lambda b, x, w: ties(b, x, w, 1.0))],
    "nodrop_noelect": [
        ({"weight": (1.0, 0.25, 0.5)}, lambda b, x, w: trimmed_average(b, x, w, 1.0))
    ],
    "ties_noelect": [({"density": 0.3}, lambda b, x, w: trimmed_average(b, x, w, 0.3))],
    "ties_row": [({"density": 0.3}, lambda b, x, w: ties_row(b, x, w, 0.3))],
    "dare_noelect": [({"density": 0.4}, lambda b, x, w: dare_averaged(b, x, w, 0.4, elects=False))],
    "dare_della": [({"density": 0.4}, lambda b, x, w: dare_averaged(b, x, w, 0.4, elects=True))],
    "breadcrumbs": [
        ({"density": 0.6, "gamma": 0.1}, lambda b, x, w: breadcrumbs(b, x, w, 0.6, 0.1))
    ],
    "model_stock": [
        ({}, model_stock),
        (
            {"filter_wise": True},
            lambda b, x, w: torch.stack([model_stock(b[i], x[:, i], w) for i in range(len(b))]),
        ),
    ],
    "stock_merging": [({}, mergellm_stock), ({"clamp": False}, model_stock)],
    "breadcrumbs_merging": [
        (
            {
                "param_density": density,
                "param_value_mask_rate": rate,
                "scaling_coefficient": 0.5,
            },
            lambda b, x, w, density=density, rate=rate: mergellm_breadcrumbs(
                b, x, w, density, rate, 0.5
            ),
        )
        for density, rate in ((0.9, 0.05), (0.4, 0.6), (0.4, 0.0), (0.6, 0.2))
    ],
    "widen_merging": [
        (
            {"above_average_value_ratio": ratio, "score_calibration_value": value},
            lambda b, x, w, ratio=ratio, value=value: widen(b, x, w, ratio, value),
        )
        for ratio, value in (
            (1.001, 1.0),
            (0.499, 0.8),
            (2.001, 1.0),
        )  # of which no rank is a multiple
    ],
    "ties_merging": [
        (
            {"param_value_mask_rate": 0.6, "scaling_coefficient": 0.5, "trim_scope": scope},
            lambda b, x, w: mergellm_ties(b, x, w, 0.6, 0.5),
        )
        for scope in ("tensor", "model")
    ],
    "twin_merging": [
        ({"router": "fixed"}, lambda b, x, w: b + 0.3 * (x - b).sum(0)),
        ({"router": "fixed", "shared_method": "average_merging"}, average),
        ({"router": "fixed", "shared_method": "base_model"}, lambda b, x, w: b),
        (
            {"router": "fixed", "shared_method": "ties_merging", "param_value_mask_rate": 0.6},
            lambda b, x, w: mergellm_ties(b, x, w, 0.6, 0.3),
        ),
    ],
    "mask_merging": [
        (
            {"weight_mask_rate": 0.25, "use_weight_rescale": True},
            lambda b, x, w: (b + (x - b) * drawn(b, x, 0.75) / 0.75).mean(0),
        ),
        (
            {"weight_mask_rate": 0.25, "weight_format": "finetuned_weight"},
            lambda b, x, w: (x * drawn(b, x, 0.75)).mean(0),
        ),
        (
            {
                "weight_mask_rate": 0.25,
                "mask_strategy": "magnitude",
                "mask_apply_method": "ties_merging",
                "param_value_mask_rate": 0.5,
            },
            lambda b, x, w: mergellm_ties(b, smallest_dropped(b, x, 0.25), w, 0.5, 1.0),
        ),
    ],
}
