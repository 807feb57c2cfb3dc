"""How far a judge can be trusted: its scores against known ones."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.table import Table

from mmkd.errors import ConfigError, DataError
from mmkd.synthesis.judging.judge import Verdict
from mmkd.synthesis.judging.scales import Scale

LEVELS = ("low", "middle", "high")


@dataclass(frozen=True)
class Calibration:
    """A judge against labels.

    Attributes:
        items, unscored: answers with a label and a score; with a label and no score.
        tau: Kendall's tau-b between the judge's scores and the known ones, -1 to 1 (Kendall 1945, with ties); NaN
            where either side gives all of them one score. p_value: of no association.
        table: how often each (known level, given level) came, by thirds of the scale.
        agreement: share of answers on the table's diagonal.
        kappa: Cohen's kappa of the table, agreement beyond chance; NaN where chance alone would agree always.
    """

    items: int
    unscored: int
    tau: float
    p_value: float
    table: dict[tuple[str, str], int]
    agreement: float
    kappa: float

    def shown(self, title: str = "judge against labels") -> Table:
        table = Table("known \\ given", *LEVELS, title=title, title_justify="left")
        for known in LEVELS:
            table.add_row(known, *(f"{self.table.get((known, given), 0):,}" for given in LEVELS))
        table.caption = (
            f"{self.items:,} answers, {self.unscored:,} without a score · Kendall tau-b {self.tau:.3f} "
            f"(p {self.p_value:.2g}) · agreement {self.agreement:.1%} · kappa {self.kappa:.3f}"
        )
        return table


def calibrate(verdicts: Iterable[Verdict], known: dict[str, Sequence[float]], scale: Scale) -> Calibration:
    """The judge's scores against known scores of the same answers.

    Args:
        known: of each answer of an item, by the item's id, on the same scale.

    Raises: DataError where no answer has both a label and a score.
    """
    given: list[float] = []
    truth: list[float] = []
    unscored = 0
    for verdict in verdicts:
        labels = known.get(verdict.item.id)
        if labels is None:
            continue
        if verdict.scores is None:
            unscored += len(labels)
            continue
        given += verdict.scores
        truth += [float(label) for label, _ in zip(labels, verdict.scores, strict=True)]
    if not given:
        raise DataError(
            f"no answer has both a label and a score ({unscored} have a label only); nothing to calibrate by."
        )
    tau, p_value = kendall(given, truth)
    table = Counter((level(t, scale), level(g, scale)) for t, g in zip(truth, given, strict=True))
    agreement, kappa = agreement_of(table)
    return Calibration(len(given), unscored, tau, p_value, dict(table), agreement, kappa)


def kendall(given: Sequence[float], truth: Sequence[float]) -> tuple[float, float]:
    """(tau-b, p value), NaN where one side is constant."""
    try:
        from scipy.stats import kendalltau
    except ImportError as error:
        raise ConfigError("calibration needs scipy: pip install 'mmkd[synthesis]'.") from error
    result = kendalltau(given, truth, variant="b")
    return float(result.statistic), float(result.pvalue)


def level(score: float, scale: Scale) -> str:
    """The third of the scale in which a score lies."""
    third = (score - scale.low) / (scale.high - scale.low) * len(LEVELS)
    return LEVELS[min(int(third), len(LEVELS) - 1)]


def agreement_of(table: dict[tuple[str, str], int]) -> tuple[float, float]:
    """(share on the diagonal, Cohen's kappa) of a table of counts (Cohen 1960)."""
    total = sum(table.values())
    agreed = sum(count for (known, given), count in table.items() if known == given) / total
    rows, columns = Counter[str](), Counter[str]()
    for (known, given), count in table.items():
        rows[known] += count
        columns[given] += count
    chance = sum(rows[name] * columns[name] for name in rows) / total**2
    return agreed, (agreed - chance) / (1 - chance) if chance < 1 else math.nan
