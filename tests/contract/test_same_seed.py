"""The same seed gives the same bits."""

from __future__ import annotations

import random
from collections.abc import Callable

from contract.cases import Case, every_case, read, same_bits

from merge_plugins.engine import Merge


@every_case()
def test_the_same_seed_gives_the_same_bits_in_any_order(
    case: Case, lazily: Callable[..., Merge]
) -> None:
    first = read(lazily(case))
    shuffled = list(lazily(case).tensors().items())
    random.Random(0).shuffle(shuffled)
    assert same_bits(first, {name: tensor[...] for name, tensor in shuffled})
    changed = not same_bits(first, read(lazily(case, seed=1)))
    assert changed == case.is_random
