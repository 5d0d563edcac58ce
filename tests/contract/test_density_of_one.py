"""What keeps everything trims nothing."""

from __future__ import annotations

import pytest
import torch
from contract.cases import Case, case_of

from merge_plugins.testing import near, weights


@pytest.mark.parametrize(
    ("trimming", "plain"),
    [
        (case_of("ties", density=1.0), case_of("dare_ties", normalize=True)),
        (case_of("ties_merging", param_value_mask_rate=0.0), case_of("ties", weight=1.0)),
        (case_of("breadcrumbs", density=1.0, gamma=0.5), case_of("task_arithmetic", weight=0.5)),
        (case_of("dare_linear", density=1.0), case_of("task_arithmetic", weight=0.5)),
        (case_of("della_linear", density=1.0), case_of("task_arithmetic", weight=0.5)),
        (case_of("della", drop_rate=0.0, window_size=0.14), case_of("ties")),
        (case_of("nodrop_elect", weight=0.5), case_of("ties")),
        (case_of("ties_row"), case_of("ties")),
        (case_of("ties_noelect"), case_of("nodrop_noelect", weight=0.5)),
        (case_of("dare_ties", density=1.0), case_of("ties", normalize=False)),
        (case_of("mask_merging", weight_mask_rate=0.0), case_of("average_merging")),
        (
            case_of("mask_merging", weight_mask_rate=0.0, mask_strategy="magnitude"),
            case_of("average_merging"),
        ),
        (
            case_of("mask_merging", weight_mask_rate=0.0, mask_apply_method="task_arithmetic"),
            case_of("task_arithmetic"),
        ),
        (
            case_of("mask_merging", weight_mask_rate=0.0, mask_apply_method="ties_merging"),
            case_of("ties_merging"),
        ),
    ],
    ids=lambda case: case.method.name,
)
def test_a_density_of_one_trims_nothing(trimming: Case, plain: Case) -> None:
    base, *_ = weights(1)
    experts = near(base, 3)
    for expert in experts:
        expert.view(-1)[::7] = base.view(-1)[::7] + 1.25  # no cancelling sums: ties differ there
    (merged,) = trimming.merge(trimming.slot(base, *experts))
    (expected,) = plain.merge(plain.slot(base, *experts))
    elected_differently = sum(expert - base for expert in experts) == 0
    same = torch.isclose(merged, expected, rtol=1e-6, atol=1e-7)
    assert bool((same | elected_differently).all())
