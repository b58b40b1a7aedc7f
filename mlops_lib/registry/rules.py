"""What follows from the entries of a ledger, and which entry may come next: pure, and asked by all.

Moves ask before they write; whoever reads asks it of every entry again, so that an entry that no rule allows counts
for nobody, however well its hash fits. What every stage has is a fold over the entries, and no record of its own.

>>> Ledger("toy", registrations, moves).state.standing["prod"].version  # doctest: +SKIP
7
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from mlops_lib.project import Project
from mlops_lib.registry.entries import MOVES, Chain, Entry, sha256

ACTIONS = MOVES | {"freeze", "unfreeze", "approve", "delete"}


@dataclass(frozen=True)
class Rules:
    """What a project allowed when an entry was written; each move carries its own."""

    stages: tuple[str, ...]
    approvals: tuple[str, ...] = ()
    may_skip_stages: bool = False

    @classmethod
    def of(cls, project: Project) -> Rules:
        """Return what a project allows."""
        return cls(project.stages, project.approvals, project.may_skip_stages)

    @classmethod
    def from_text(cls, text: str) -> Rules:
        """Read back :meth:`to_text`."""
        stages, _, rest = text.partition(";")
        approvals, _, skips = rest.partition(";")
        return cls(tuple(stages.split()), tuple(approvals.split()), skips == "may skip")

    def to_text(self) -> str:
        """Return how an entry holds them; names of stages have no blanks."""
        return ";".join((" ".join(self.stages), " ".join(self.approvals), "may skip" * self.may_skip_stages))


@dataclass
class State:
    """What stands where once some entries have happened."""

    registered: dict[int, Entry] = field(default_factory=dict)
    standing: dict[str, Entry] = field(default_factory=dict)  # what put each stage's present version there
    frozen: dict[str, Entry] = field(default_factory=dict)
    deleted: set[int] = field(default_factory=set)
    had: dict[str, dict[int, Entry]] = field(default_factory=dict)  # of each stage, the last move of each version
    stacks: dict[str, list[Entry]] = field(default_factory=dict)  # what a rollback can go back through
    approvals: dict[tuple[str, int], list[Entry]] = field(default_factory=dict)  # that no promotion has used

    def add(self, entry: Entry) -> None:
        """Let one entry happen."""
        stage, version = entry.stage, entry.version
        if entry.action in MOVES:
            self.standing[stage] = entry
            had = self.had.setdefault(stage, {})
            had.pop(version, None)
            had[version] = entry
            stack = self.stacks.setdefault(stage, [])
            if entry.action == "rollback":  # undoes what came after its target
                while stack and stack[-1].version != version:
                    stack.pop()
            elif not stack or stack[-1].version != version:
                stack.append(entry)
        match entry.action:
            case "register":
                self.registered[version] = entry
            case "promote" | "force":
                self.approvals.pop((stage, version), None)
            case "freeze":
                self.frozen[stage] = entry
            case "unfreeze":
                self.frozen.pop(stage, None)
            case "approve":
                self.approvals.setdefault((stage, version), []).append(entry)
            case "delete":
                self.deleted.add(version)

    def current(self, stage: str) -> int | None:
        """Return the version that ``stage`` has, or None where it is empty."""
        entry = self.standing.get(stage)
        return entry.version if entry else None

    def files(self, version: int) -> dict[str, Any]:
        """Return which model files ``version`` was registered with; of one that never was, only its number."""
        registration = self.registered.get(version)
        return registration.files if registration else {"version": version}

    def left(self, stage: str) -> dict[int, Entry]:
        """Return the versions that a stage had and a rollback may go to, with their last moves."""
        gone = {self.current(stage), *self.deleted}
        return {version: entry for version, entry in self.had.get(stage, {}).items() if version not in gone}

    def undo(self, stage: str) -> list[Entry]:
        """Return the moves that a rollback without a target can go back through, oldest first."""
        gone = {self.current(stage), *self.deleted}
        return [entry for entry in self.stacks.get(stage, ()) if entry.version not in gone]


def replay(entries: Iterable[Entry]) -> State:
    """Return what follows from entries, whether or not they were allowed."""
    state = State()
    for entry in entries:
        state.add(entry)
    return state


# --- what may come next: each returns why not, or None ---------------------------------------------------------------


def why_illegal(state: State, entry: Entry) -> str | None:
    """Return which rule an entry breaks that is said to follow on ``state``."""
    stage, version, rules, why = entry.stage, entry.version, Rules.from_text(entry.rules), None
    match entry.action:
        case "register":
            why = "it is registered already" if version in state.registered else None
        case "promote" if not entry.verdict:
            why = "there is no verdict on it"
        case "force" if not entry.reason.strip():
            why = "forcing takes a reason"
        case "promote" | "force":
            why = why_no_way(state, rules, version, stage) or why_not_approved(state, rules, entry)
        case "rollback":
            why = why_no_rollback(state, stage, version)
        case "freeze" | "unfreeze":
            why = why_no_freeze(state, rules, entry)
        case "approve":
            why = why_no_approval(state, rules, entry)
        case "delete":
            why = why_no_deletion(state, rules, version)
        case _:
            why = f"'{entry.action}' is none of {', '.join(sorted(ACTIONS))}"
    if not why and not entry.is_registration and version and entry.files != {**entry.files, **state.files(version)}:
        why = f"its model files are not those that version {version} was registered with"
    return why


def why_no_way(  # noqa: PLR0911 - one return per reason reads better than a chain
    state: State, rules: Rules, version: int, stage: str
) -> str | None:
    """Return why a version may not go up to ``stage`` from where it stands."""
    if stage not in rules.stages:
        return f"the project has no stage '{stage}'"
    index, first = rules.stages.index(stage), rules.stages[0]
    origin = first if rules.may_skip_stages else rules.stages[index - 1]
    beyond = [s for s in rules.stages[index + 1 :] if state.current(s) == version]
    if stage in state.frozen:
        return describe_freeze(state.frozen[stage])
    if index == 0:
        return f"'{stage}' is where versions are registered; nothing is promoted to it"
    if state.current(stage) == version:
        return "it is there already"
    if beyond:
        return f"it is in {beyond[0]} already; a stage goes back only by a rollback"
    if version not in state.had.get(origin, {}):
        return f"it has never been in {origin}"
    is_there = origin == first or state.current(origin) == version
    return None if is_there else f"{origin} has version {state.current(origin)} by now"


def why_not_approved(state: State, rules: Rules, draft: Entry) -> str | None:
    """Return why a promotion, with its actor, lacks the second person that its stage needs."""
    if draft.stage not in rules.approvals:
        return None
    left = state.approvals.get((draft.stage, draft.version), [])
    if not left:
        return f"{draft.stage} needs the approval of a second person ('mlops approve {draft.version} {draft.stage}')"
    left = [entry for entry in left if (entry.digest, entry.verdict) == (draft.digest, draft.verdict)]
    if not left:
        return "it was approved on another verdict than this one"
    if all(entry.actor == draft.actor for entry in left):
        return f"{draft.actor} approved it, so somebody else promotes it"
    return None


def why_no_rollback(state: State, stage: str, to: int | None) -> str | None:
    """Return why a stage may not go back to version ``to``, or to the one before for None."""
    left = state.left(stage)
    known = ", ".join(str(version) for version in sorted(left))
    if stage in state.frozen:
        return describe_freeze(state.frozen[stage])
    if not left:
        return "it has never had another version"
    if to is not None:
        return None if to in left else f"it never had version {to}; it had {known}"
    return None if state.undo(stage) else f"that is the oldest it had; name one of {known} (--to)"


def why_no_freeze(state: State, rules: Rules, draft: Entry) -> str | None:
    """Return why a stage may not be frozen, or unfrozen, as ``draft`` says."""
    freeze = state.frozen.get(draft.stage)
    if not draft.reason.strip():
        return "it takes a reason"
    if draft.stage in rules.stages[:1]:
        return "versions are registered there, and nothing is promoted to it"
    if draft.action == "freeze" and freeze is not None:
        return describe_freeze(freeze)
    if draft.action == "unfreeze" and freeze is None:
        return "it is not frozen"
    return None if state.standing else "nothing is registered yet"


def why_no_approval(state: State, rules: Rules, draft: Entry, authors: Iterable[str | None] = ()) -> str | None:
    """Return why the actor of ``draft`` may not approve; ``authors`` are those whom the version's run names."""
    registration = state.registered.get(draft.version)
    if not draft.reason.strip():
        return "it takes a reason"
    if draft.stage not in rules.approvals:
        return f"{draft.stage} needs no second person (approvals = {rules.approvals})"
    if registration is None:
        return "it is not in the ledger"
    return f"{draft.actor} is its author" if draft.actor in {registration.actor, *authors} else None


def why_no_deletion(state: State, rules: Rules, version: int) -> str | None:
    """Return why a version may not be deleted: a stage has it, or could be rolled back to it.

    Of the first stage, where every version begins, only the present version counts: a rollback there passes over what
    was deleted.
    """
    holders = [stage for stage, entry in state.standing.items() if entry.version == version]
    stacks = ((stage, state.stacks.get(stage, ())) for stage in rules.stages[1:])
    needers = [stage for stage, stack in stacks if any(entry.version == version for entry in stack)]
    if holders:
        return f"{holders[0]} has it"
    return f"{needers[0]} had it and could be rolled back to it" if needers else None


def describe_freeze(entry: Entry) -> str:
    """Return who froze a stage, when and why."""
    return f"{entry.stage} is frozen by {entry.actor} since {entry.at}: {entry.reason}"


# --- the whole -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ledger:
    """What one reading of the store gave, and what follows from it."""

    name: str
    registrations: Chain
    moves: Chain
    aliases: Mapping[str, str] | None = field(default_factory=dict)  # None where the store keeps none

    @classmethod
    def begin(cls, name: str, moment: int | None = None) -> Ledger:
        """Return a ledger without entries: of the model made at this moment (ms), or before there is one.

        A name is no identity, a name and a moment are: both chains begin with their hash.
        """
        if moment is None:
            return cls(name, Chain(name, "r"), Chain(name))
        genesis = [sha256(f"{name}\n{moment}\n{kind}") for kind in ("registrations", "moves")]
        return cls(name, Chain(name, "r", genesis[0]), Chain(name, "", genesis[1]))

    @property
    def chains(self) -> tuple[Chain, Chain]:
        """Registrations and moves."""
        return self.registrations, self.moves

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """Both chains in one order: a registration comes before the first move that had seen it.

        Raises
        ------
        LedgerError
            A move names a registration that is not there, or fewer than the move before it.
        """
        numbers = {self.registrations.genesis: 0, "": 0}
        numbers |= {hash_: n for n, hash_ in enumerate(self.registrations.hashes, 1)}
        merged: list[Entry] = []
        n_seen = 0
        for move in self.moves.entries:
            seen = numbers.get(move.seen, -1)
            if seen < n_seen:
                raise self.moves.broken(move.number, "names a registration that is not there")
            merged += self.registrations.entries[n_seen:seen]
            merged.append(move)
            n_seen = seen
        return (*merged, *self.registrations.entries[n_seen:])

    @cached_property
    def state(self) -> State:
        """What follows from all entries.

        Raises
        ------
        LedgerError
            Naming the first entry that the rules did not allow when it was written.
        """
        state = State()
        for entry in self.entries:
            if why := why_illegal(state, entry):
                chain = self.registrations if entry.is_registration else self.moves
                raise chain.broken(entry.number, f"was not allowed: {entry.action} {entry.stage}, {why}")
            state.add(entry)
        return state

    def chain_of(self, entry: Entry) -> Chain:
        """Return the chain that an entry stands in."""
        return self.registrations if entry.is_registration else self.moves

    def find_operation(self, operation: str | None) -> Entry | None:
        """Return the entry of an operation id."""
        return next((entry for entry in self.entries if operation and entry.operation == operation), None)

    def with_chain(self, chain: Chain) -> Ledger:
        """Return this ledger with a chain that was read again."""
        return replace(self, registrations=chain) if chain.prefix else replace(self, moves=chain)
