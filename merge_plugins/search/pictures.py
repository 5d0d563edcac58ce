"""Draw a search: its course, each parameter, two weights, the Pareto front, what mattered."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import optuna
from matplotlib.figure import Figure

from merge_plugins.drawing import new_figure, save
from merge_plugins.search.by_optuna import quiet
from merge_plugins.search.dashboard import rebuilt
from merge_plugins.search.dimensions import Range
from merge_plugins.search.history import History
from merge_plugins.search.ledger import Trial
from merge_plugins.search.ranking import on
from merge_plugins.search.study import Study

FEWEST = 8
"""Points of the space below which importances and contours say nothing."""
MOST_NAMED = 3
"""Candidates named at one place of the Pareto front."""
ACROSS = 3
"""Panels in a row, at most."""


def draw(study: Study) -> list[str]:
    """Draw every picture that there is something to see in; return the files' names."""
    shares = importances(study)
    drawn = {
        "course.png": _course(study),
        "parameters.png": _parameters(study),
        "importances.png": _importances(shares),
        "contour.png": _contour(study, shares),
        "front.png": _front(study),
    }
    for name, figure in drawn.items():
        if figure is not None:
            save(figure, study.ledger.folder / name)
    return [name for name, figure in drawn.items() if figure is not None]


def _points(study: Study) -> list[tuple[Trial, float]]:
    """List complete points of the space, with their totals for people to read."""
    tuned, ranking = study.tuned, study.ranking
    return [
        (trial, ranking.shown(ranking.total(on(trial.scores, tuned))))
        for trial in History(study.ledger.trials).points
        if trial.state == "complete"
    ]


def _label(study: Study) -> str:
    goals = [*study.ranking.goals]
    return goals[0] if len(goals) == 1 else "weighted mean of goals"


def _course(study: Study) -> Figure | None:
    values = [(trial, study.ranking.total(scores)) for trial, scores in study.complete]
    if not values:
        return None
    figure = new_figure(7, 4)
    axes = figure.add_subplot()
    shown = study.ranking.shown
    best = -math.inf
    steps = []
    for _, value in values:
        best = max(best, value)
        steps.append(shown(best))
    order = range(len(values))
    sources = [i for i, (trial, _) in enumerate(values) if not trial.params]
    merges = [i for i, (trial, _) in enumerate(values) if trial.params]
    axes.plot(merges, [shown(values[i][1]) for i in merges], "o", ms=4, label="merges")
    axes.plot(sources, [shown(values[i][1]) for i in sources], "s", ms=6, label="models alone")
    axes.step(order, steps, where="post", color="black", lw=1, label="best so far")
    axes.set_xlabel("complete candidates, in the order they ended")
    axes.set_ylabel(_label(study))
    axes.legend()
    return figure


def _parameters(study: Study) -> Figure | None:
    points = _points(study)
    names = [n for n in study.space.dimensions if any(n in t.params for t, _ in points)]
    if not names:
        return None
    rows = math.ceil(len(names) / ACROSS)
    across = math.ceil(len(names) / rows)  # four panels are two by two, not three and one
    figure = new_figure(3.6 * across, 2.9 * rows)
    for i, name in enumerate(names, start=1):
        axes = figure.add_subplot(rows, across, i)
        pairs = [(t.params[name], value) for t, value in points if name in t.params]
        dimension = study.space.dimensions[name]
        is_range = isinstance(dimension, Range)
        xs: list[Any] = [x if is_range else str(x) for x, _ in pairs]
        shades = range(len(pairs))  # later is darker
        axes.scatter(xs, [y for _, y in pairs], c=shades, cmap="viridis_r", s=14)
        if isinstance(dimension, Range) and dimension.log:
            axes.set_xscale("log")
        axes.set_xlabel(name)
        axes.set_ylabel(_label(study) if (i - 1) % across == 0 else "")
    figure.suptitle("Score against each parameter; later candidates are darker", fontsize="medium")
    return figure


def importances(study: Study) -> dict[str, float]:
    """Return the share of each parameter in the variance of the scores [fANOVA], largest first."""
    points = _points(study)
    if len(points) < FEWEST or len({value for _, value in points}) < 2:
        return {}
    with quiet():
        made = rebuilt(study)
        target = _total if study.settings.pareto else None
        try:
            return optuna.importance.get_param_importances(
                made,
                target=target,
                evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0),
            )
        except (RuntimeError, ValueError):  # no parameter that every trial has, or none varies
            return {}


def _total(trial: optuna.trial.FrozenTrial) -> float:
    return float(sum(trial.values) / len(trial.values))


def _importances(shares: Mapping[str, float]) -> Figure | None:
    if not shares:
        return None
    figure = new_figure(6, 0.7 + 0.35 * len(shares))
    axes = figure.add_subplot()
    names = [*shares][::-1]
    axes.barh(names, [shares[name] for name in names])
    axes.set_xlabel("share of the variance of the scores (fANOVA)")
    return figure


def _contour(study: Study, shares: Mapping[str, float]) -> Figure | None:
    """Draw the two ranges that matter most, where most points have both."""
    points, dimensions = _points(study), study.space.dimensions
    order = [*shares] or [*dimensions]
    ranges = [name for name in order if isinstance(dimensions[name], Range)][:2]
    both = [(t, value) for t, value in points if all(name in t.params for name in ranges)]
    if len(ranges) < 2 or len(both) < FEWEST:
        return None
    xs, ys = ([float(t.params[name]) for t, _ in both] for name in ranges)  # type: ignore[arg-type]
    values = [value for _, value in both]
    figure = new_figure(6, 4.6)
    axes = figure.add_subplot()
    if _is_spread(xs, ys) and len({*values}) > 1:
        areas = axes.tricontourf(xs, ys, values, levels=12, cmap="viridis", extend="both")
        figure.colorbar(areas, label=_label(study))
    axes.plot(xs, ys, ".", color="black", ms=4)
    axes.set_xlabel(ranges[0])
    axes.set_ylabel(ranges[1])
    return figure


def _is_spread(xs: Sequence[float], ys: Sequence[float]) -> bool:
    """Whether points span an area, so that there are triangles between them."""
    x0, y0 = xs[0], ys[0]
    far = max(zip(xs, ys, strict=True), key=lambda p: (p[0] - x0) ** 2 + (p[1] - y0) ** 2)
    area = (
        (far[0] - x0) * (y - y0) - (far[1] - y0) * (x - x0) for x, y in zip(xs, ys, strict=True)
    )
    return max(map(abs, area)) > 1e-9


def _front(study: Study) -> Figure | None:
    """Draw the first two goals against each other, with what nothing dominates."""
    names = [*study.ranking.goals][:2]
    if len(names) < 2:
        return None
    scored, apart = study.complete, replace(study.ranking, pareto=True)
    front = {trial.number for trial, _ in apart.front(scored)}
    figure = new_figure(6, 4.6)
    axes = figure.add_subplot()
    for is_on, label, mark in ((False, "dominated", "."), (True, "Pareto front", "o")):
        some = [s for t, s in scored if (t.number in front) == is_on]
        axes.plot(
            [s[names[0]].value for s in some], [s[names[1]].value for s in some], mark, label=label
        )
    there: dict[tuple[float, float], list[str]] = {}
    for trial, scores in scored:
        if trial.number in front:
            place = (scores[names[0]].value, scores[names[1]].value)
            there.setdefault(place, []).append(str(trial.number))
    for place, numbers in there.items():  # several candidates may have equal scores
        more = ", …" if len(numbers) > MOST_NAMED else ""
        text = ", ".join(numbers[:MOST_NAMED]) + more
        axes.annotate(text, place, xytext=(-6, -12), textcoords="offset points", ha="right")
    axes.set_xlabel(names[0])
    axes.set_ylabel(names[1])
    axes.legend()
    return figure
