"""Compare two contracts, by whether tables that are made for the one could feed the other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from mlops_lib.contracts.contract import Column, Contract
from mlops_lib.contracts.reading import name_kind
from mlops_lib.contracts.rules import POLICIES, Rule
from mlops_lib.report import Report, Row, Status
from mlops_lib.wording import listed


def compare_contracts(champion: Contract, candidate: Contract) -> Report:
    """Check that tables made for the champion can feed the candidate.

    ``facts["compatibility"]`` is *breaking* when the candidate needs another column, kind or key or no longer takes
    nulls; *stricter* when some rows or batches that the champion takes would be bad; else *compatible*.
    """
    old, new = ({column.name: column for column in contract.columns} for contract in (champion, candidate))
    changed = _breaking_keys(champion, candidate)
    keys: Status = "failed" if changed else "passed"
    rows = [Row("keys", listed(candidate.keys), listed(champion.keys), keys, changed)]
    stricter = [*_tighter(champion, candidate, ("max_bad_share",)), *_tighter_rules(champion, candidate)]
    stricter += _tighter_policies(champion, candidate)
    if stricter:
        rows.append(Row("batch", "stricter", "champion's", "passed", "; ".join(stricter)))
    for name, column in new.items():
        breaks = _breaks(old.get(name), column)
        tighter = [] if breaks or name not in old else list(_narrower(old[name], column))
        stricter += tighter
        if breaks:
            rows.append(Row(name, "breaking", "champion's", "failed", breaks))
        elif old[name] != column:
            rows.append(Row(name, "stricter" if tighter else "looser", "champion's", "passed", "; ".join(tighter)))
    rows += [Row(name, "unused", "champion's", "passed", "no longer needed") for name in old if name not in new]
    breaking = any(row.status == "failed" for row in rows)
    verdict = "breaking" if breaking else "stricter" if stricter else "compatible"
    facts = {"compatibility": verdict, "champion": champion.digest, "candidate": candidate.digest}
    return Report("Contract of the candidate against the champion's", tuple(rows), facts)


def _breaking_keys(champion: Contract, candidate: Contract) -> str:
    if set(champion.keys) != set(candidate.keys):
        return "keys changed"
    kinds = ((key, kind, champion.key_kinds.get(key, "key of any kind")) for key, kind in candidate.key_kinds.items())
    return "; ".join(f"{key} is {name_kind(new)}, was {name_kind(old)}" for key, new, old in kinds if new != old)


def _tighter_rules(champion: Contract, candidate: Contract) -> Iterator[str]:
    """Tell the rules that are new, or that fewer rows or batches keep. Rules are the same if they compare the same."""
    known = {rule.expression: rule for rule in champion.rules}
    for rule in candidate.rules:
        old = known.get(rule.expression)
        if old is None:
            yield f"rule {rule} added"
        elif POLICIES.index(rule.policy) > POLICIES.index(old.policy) or _limit(rule) < _limit(old):
            yield f"rule {rule}, was {old}"


def _limit(rule: Rule) -> float:
    return 1.0 if rule.max_share is None else rule.max_share


def _tighter_policies(champion: Contract, candidate: Contract) -> Iterator[str]:
    for name in sorted({*champion.policies, *candidate.policies}):
        old, new = champion.policy(name), candidate.policy(name)
        if POLICIES.index(new) > POLICIES.index(old):
            yield f"{name} {new}, was {old}"


def _breaks(old: Column | None, new: Column) -> str:
    if old is None:
        return "the champion takes no such column"
    if old.kind != new.kind:
        return f"is {name_kind(new.kind)}, was {name_kind(old.kind)}"
    return "no longer takes nulls" if old.nullable and not new.nullable else ""


def _tighter(old: Column | Contract, new: Column | Contract, names: Iterable[str]) -> Iterator[str]:
    for name in names:
        before, after = getattr(old, name), getattr(new, name)
        if after < before:
            yield f"{name} {after:.4g}, was {before:.4g}"


def _narrower(old: Column, new: Column) -> Iterator[str]:
    (old_low, old_high), (new_low, new_high) = old.ends, new.ends
    if new_low > old_low or new_high < old_high:
        yield f"range {new.range}, was {old.range}"
    if new.categories is not None:
        gone = ["any"] if old.categories is None else sorted(set(old.categories) - set(new.categories))
        if gone:
            yield f"no longer knows {listed(gone)}"
    if POLICIES.index(new.unseen) > POLICIES.index(old.unseen):
        yield f"{new.unseen}s unseen categories"
    yield from _tighter(old, new, ("max_missing_share", "max_unseen_share"))
    if new.scale is not None:
        was = (0.0, math.inf) if old.scale is None else (old.scale / old.scale_factor, old.scale * old.scale_factor)
        now = (new.scale / new.scale_factor, new.scale * new.scale_factor)
        if now[0] > was[0] or now[1] < was[1]:
            yield f"scale {now[0]:.4g} to {now[1]:.4g}, was {was[0]:.4g} to {was[1]:.4g}"
