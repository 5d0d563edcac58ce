"""What ranks measure together is what one rank measures alone, to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from contract.cases import Case, every_case
from ranks_in_threads import on_ranks
from torch import Tensor

from merge_plugins.api import Measures, Prepares
from merge_plugins.engine import merge
from merge_plugins.outputs.ranks import lazily as on_rank
from merge_plugins.parallel import Place
from merge_plugins.ranks import Ranks
from merge_plugins.testing.case import same_bits
from merge_plugins.testing.family import Family, read


def shares(case: Case) -> bool:
    """Whether it looks at whole weights before it merges one."""
    kernel = case.kernel()
    looks = isinstance(kernel, Measures | Prepares)
    return looks and not case.method.reads_data(kernel)


@every_case(shares)
def test_ranks_that_share_merge_the_bits_of_one_alone(
    case: Case, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Place, "block_size", lambda *_: 100)
    monkeypatch.setattr(merge, "remembered", lambda *_: None)  # what another rank measured here
    alone, shared = read(family.planned(case)), Ranks.all_or_none

    def succeeding(self: Ranks, run: Callable[[], Any]) -> Any:
        result = shared(self, run)
        assert result is not None or not self.open, "it went on alone"
        return result

    def merged(ranks: Ranks) -> dict[str, Tensor]:
        tensors = family.planned(case).tensors().items()
        found = {name: tensor + 0 for name, tensor in on_rank(tensors, ranks)}
        return {name: tensor.reshape(alone[name].shape) for name, tensor in found.items()}

    monkeypatch.setattr(Ranks, "all_or_none", succeeding)
    for found in on_ranks(2, merged):
        assert same_bits(found, alone)
