"""What a project's policy says to do, from what was seen: pure, so that it can be tried on any past.

>>> decide(Policy(drifting=0), Situation(n_drifting=2, n_unseen=5_000)).retrain
True
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from mlops_lib.project import Policy

MONTH = timedelta(days=30)


@dataclass(frozen=True)
class Situation:
    """What a decision rests on.

    Parameters
    ----------
    n_drifting : int
        Features that have drifted and move the predictions.
    quality_failed : bool
        Whether live quality is beyond its limit with its whole interval.
    age_days : float or None
        Since the latest row that the version in production was trained on; None where that is not known.
    n_unseen : int
        Labelled rows of periods that it has not seen.
    trained_at : sequence of datetime
        When the policy had a version trained before.
    now : datetime or None
    on_probation : bool
        Whether the version in production is still being watched.
    can_train : str
        Why nothing could be trained at all; empty where it could.
    """

    n_drifting: int = 0
    quality_failed: bool = False
    age_days: float | None = None
    n_unseen: int = 0
    trained_at: Sequence[datetime] = ()
    now: datetime | None = None
    on_probation: bool = False
    can_train: str = ""


@dataclass(frozen=True)
class Decision:
    """Whether to train again: the reasons for it, and what stands against it."""

    reasons: tuple[str, ...]
    brakes: tuple[str, ...]

    @property
    def retrain(self) -> bool:
        """Whether there is a reason and nothing stands against it."""
        return bool(self.reasons) and not self.brakes

    def __str__(self) -> str:
        """Return a sentence for people."""
        if not self.reasons:
            return "no reason to train again"
        against = f", but {'; '.join(self.brakes)}" if self.brakes else ""
        return f"{'train again' if self.retrain else 'do not train again'}: {'; '.join(self.reasons)}{against}"


def decide(policy: Policy, seen: Situation) -> Decision:
    """Return whether to train again."""
    reasons, brakes = [], [seen.can_train] if seen.can_train else []
    if policy.drifting is not None and seen.n_drifting > policy.drifting:
        reasons.append(f"{seen.n_drifting} features that matter have drifted, {policy.drifting} may")
    if policy.quality and seen.quality_failed:
        reasons.append("live quality is beyond its limit with its whole interval")
    if policy.max_age_days is not None and seen.age_days is not None and seen.age_days > policy.max_age_days:
        reasons.append(f"its training data are {seen.age_days:.0f} days old, {policy.max_age_days:g} may be")
    if seen.n_unseen < policy.min_rows:
        brakes.append(f"{seen.n_unseen:,} labelled rows are new to it, {policy.min_rows:,} are needed")
    if seen.now is not None and seen.trained_at:
        since = (seen.now - max(seen.trained_at)) / timedelta(days=1)
        if since < policy.cool_down_days:
            brakes.append(f"the last training is {since:.1f} days ago, {policy.cool_down_days:g} have to pass")
        n_lately = sum(at > seen.now - MONTH for at in seen.trained_at)
        if n_lately >= policy.max_a_month:
            brakes.append(f"{n_lately} trainings in 30 days are enough")
    if seen.on_probation:
        brakes.append("the version in production is on probation")
    return Decision(tuple(reasons), tuple(brakes))
