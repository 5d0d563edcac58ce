"""Check that a merge method keeps its contract: what a plugin's own tests call.

    from merge_plugins.testing import check_method

    def test_it_keeps_the_contract() -> None:
        check_method("median", {"scale": 0.5})

Our own methods are checked by the same code, in tests/contract.
"""

from merge_plugins.testing.case import Case, near, same_bits, weights
from merge_plugins.testing.check import check_method

__all__ = ["Case", "check_method", "near", "same_bits", "weights"]
