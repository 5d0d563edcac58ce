"""How a weight is cut, and how many work on it, never shows."""

from __future__ import annotations

from contract.cases import Case, every_case
from hypothesis import given, settings
from hypothesis import strategies as st

from merge_plugins.testing import engine
from merge_plugins.testing.family import Family, read
from merge_plugins.testing.promises import whole_is_measured


@every_case()
def test_a_weight_of_many_blocks_is_measured_as_a_whole(case: Case) -> None:
    whole_is_measured(case)


@every_case()
def test_block_size_and_thread_count_never_show(case: Case, family: Family) -> None:
    engine.blocks_never_show(case, family)
    engine.threads_never_show(case, family)


@every_case()
def test_any_region_has_the_bits_of_the_whole(case: Case, family: Family) -> None:
    merge = family.planned(case, block=50)
    tensors, whole = merge.tensors(), read(merge)

    @settings(max_examples=15)
    @given(name=st.sampled_from(sorted(tensors)), data=st.data())
    def holds(name: str, data: st.DataObject) -> None:
        cuts = (
            slice(*sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)))))
            for n in tensors[name].shape
        )
        engine.region_has_the_bits(case, tensors[name], whole[name], tuple(cuts))

    holds()


@every_case()
def test_what_is_measured_of_a_large_weight_is_the_same_on_any_number_of_threads(
    case: Case,
) -> None:
    engine.measured_by_any_number_of_threads(case)
