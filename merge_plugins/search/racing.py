"""Spend fewer forward passes: on what documents a candidate is scored, and when it is stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from merge_plugins.errors import MergeError
from merge_plugins.search.ranking import Ranking, Scores

Documents = Mapping[str, Sequence[str]]
"""Ids of documents by goal."""
LOOKS = (0.125, 0.25, 0.5)
"""Shares of the documents after which a candidate may be stopped."""
LEVEL = 0.05
"""Chance that a candidate as good as the best is stopped, over all looks."""
FEWEST = 8
"""Documents before the first look."""


@dataclass(frozen=True)
class Split:
    """Documents to tune on, and the rest, on which only winners are scored."""

    tune: Documents
    held_out: Documents

    @classmethod
    def of(cls, documents: Documents, tune: float | int | None, seed: int) -> Split:
        """Split the documents of every goal; ``tune``: a share, a number, or None for all.

        The order is that of hashes: no document changes sides when others are added.
        """
        tuned, rest = {}, {}
        for goal, ids in documents.items():
            order = sorted(ids, key=lambda one: hashlib.sha256(f"{seed} {one}".encode()).digest())
            n = _number(goal, len(order), tune)
            tuned[goal], rest[goal] = order[:n], order[n:]
        return cls(tuned, rest)

    @property
    def is_whole(self) -> bool:
        """Whether nothing is held out."""
        return not any(self.held_out.values())


def _number(goal: str, n: int, tune: float | int | None) -> int:
    if tune is None or not n:
        return n
    wanted = tune if isinstance(tune, int) else round(tune * n)
    if not 0 < wanted < n:
        raise MergeError(
            f"split: {goal} has {n} documents; tune: {tune} leaves none "
            f"{'to tune on' if wanted < 1 else 'to score the winner on'}"
        )
    return wanted


def on_which_they_differ(sources: Sequence[Scores], documents: Documents) -> Documents:
    """Select the documents on which the sources' scores differ; where none do, all."""
    found = {}
    for goal, ids in documents.items():
        values = [scores[goal].documents for scores in sources]
        differ = [one for one in ids if len({each[one] for each in values}) > 1]
        found[goal] = differ or ids
    return found


def rounds(documents: Documents) -> list[Documents]:
    """Cut the documents of every goal into the parts between the looks; no part is empty."""
    longest = max((len(ids) for ids in documents.values()), default=0)
    shares = [share for share in LOOKS if share * longest >= FEWEST]
    cut = []
    for start, end in zip([0.0, *shares], [*shares, 1.0], strict=True):
        part = {
            goal: ids[round(start * len(ids)) : round(end * len(ids))]
            for goal, ids in documents.items()
        }
        cut.append({goal: ids for goal, ids in part.items() if ids})
    return [part for part in cut if part]


def cannot_win(own: Scores, best: Scores, ranking: Ranking, n_looks: int) -> bool:
    """Test whether a candidate is worse than the best on the documents that both have.

    Wilcoxon's signed-rank test of the paired differences, as in Optuna's `WilcoxonPruner`; equal
    documents count half for either side. The level is divided among the looks.
    """
    differences = _differences(own, best, ranking)
    if not any(differences) or sum(differences) >= 0:
        return False
    from scipy.stats import wilcoxon  # takes a second to import

    test = wilcoxon(differences, alternative="less", zero_method="zsplit")
    return float(test.pvalue) < LEVEL / n_looks


def _differences(own: Scores, best: Scores, ranking: Ranking) -> list[float]:
    """List what each document adds to the difference of the totals, up to a common factor."""
    found = []
    for name, goal in ranking.goals.items():
        if name not in own:  # few documents, of which none are in the first part
            continue
        mine, theirs = own[name].documents, best[name].documents
        both = [one for one in mine if one in theirs]
        factor = goal.weight * ranking.sign(name) / max(len(both), 1)
        found += [factor * (mine[one] - theirs[one]) for one in both]
    return found
