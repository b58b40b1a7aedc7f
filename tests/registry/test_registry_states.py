"""Any sequence of moves, crashes among them, leaves the registry where a model of thirty lines says."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from conftest import close_databases, copy_store, make_project
from crashes import Died, dying_after, raise_died
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from rounds import rounds, soak
from stages import aliases, force_to_prod, standing

from mlops_lib import data, gates, registry, tracking
from mlops_lib.errors import MlopsError
from mlops_lib.project import Project
from mlops_lib.registry.rules import replay
from mlops_lib.registry.verdicts import verdict_digest
from mlops_lib.report import Report, Row

STAGES = ("dev", "staging", "prod")
Outcome = registry.Entry | MlopsError | None  # None: it died


@dataclass
class Model:
    """What should be, written without a look at the library's own fold."""

    digests: dict[int, str] = field(default_factory=dict)  # of the versions that are there
    had: dict[str, list[int]] = field(default_factory=lambda: {stage: [] for stage in STAGES})
    undo: dict[str, list[int]] = field(default_factory=lambda: {stage: [] for stage in STAGES})
    now: dict[str, int | None] = field(default_factory=lambda: dict.fromkeys(STAGES))
    frozen: set[str] = field(default_factory=set)
    verdicts: dict[int, tuple[str, bool, str | None]] = field(default_factory=dict)  # digest, passed, champion
    approved: list[tuple[int, str, str]] = field(default_factory=list)  # for prod: version, verdict, actor

    def move(self, stage: str, version: int) -> None:
        self.had[stage].append(version)
        self.now[stage] = version
        if version not in self.undo[stage][-1:]:
            self.undo[stage].append(version)

    @property
    def champion(self) -> str | None:
        return self.digests[self.now["prod"]] if self.now["prod"] else None

    def may_promote(self, version: int, stage: str, actor: str, force: bool) -> bool:
        if version not in self.digests or stage == "dev" or stage in self.frozen or self.now[stage] == version:
            return False
        if stage == "staging" and self.now["prod"] == version:
            return False
        if stage == "prod" and self.now["staging"] != version:
            return False
        digest, passed, champion = self.verdicts.get(version, ("", False, None))
        if not force and not (passed and champion == self.champion):
            return False
        return stage != "prod" or any(
            v == version and verdict == digest and who != actor for v, verdict, who in self.approved
        )

    def promote(self, version: int, stage: str) -> None:
        self.move(stage, version)
        if stage == "prod":
            self.approved = [approval for approval in self.approved if approval[0] != version]

    def rollback_target(self, stage: str, to: int | None) -> int | None:
        left = {v for v in self.had[stage] if v in self.digests and v != self.now[stage]}
        back = [v for v in self.undo[stage] if v in left]
        if stage in self.frozen or not left:
            return None
        if to is not None:
            return to if to in left else None
        return back[-1] if back else None

    def rollback(self, stage: str, version: int) -> None:
        while self.undo[stage] and self.undo[stage][-1] != version:
            self.undo[stage].pop()
        self.had[stage].append(version)
        self.now[stage] = version

    def may_delete(self, version: int) -> bool:
        needed = {*self.now.values(), *self.undo["staging"], *self.undo["prod"]}
        return version in self.digests and version not in needed


versions = st.integers(1, 4)
stages = st.sampled_from(STAGES)
actors = st.sampled_from(("ada", "bob", "eve"))
forces = st.sampled_from((True, True, False))
deaths = st.one_of(st.none(), st.none(), st.none(), st.integers(1, 4))


class Registry(RuleBasedStateMachine):
    """The toy project of ``store``; ada registers everything, and prod needs a second person."""

    store: Project  # filled in by the test

    @initialize()
    def begin(self) -> None:
        close_databases()
        self.project = replace(self.store, approvals=("prod",))
        copy_store(self.before, self.project)
        self.model = Model()
        self.seen: list[tuple[datetime, dict[str, int | None]]] = []
        for entry in registry.history(self.project):
            self.model.digests[entry.version] = entry.digest
            self.model.move(entry.stage, entry.version)
        self.sources = [entry.model_id for entry in registry.history(self.project, "dev")]

    before: Project

    def attempt(self, operation: Callable[[], registry.Entry], dies: int | None, expected: bool) -> bool:
        """Try an operation; return whether it was made, which a crash leaves to the ledger."""
        n_before = len(registry.read_ledger(self.project))
        outcome: Outcome = None
        try:
            if dies is None:
                outcome = operation()
            else:
                with dying_after(dies, raise_died):
                    outcome = operation()
        except Died:
            pass
        except MlopsError as error:
            outcome = error
        entries = registry.history(self.project)
        made = len(entries) - n_before
        assert made in ((0, 1) if outcome is None else (int(isinstance(outcome, registry.Entry)),))
        assert outcome is None or isinstance(outcome, registry.Entry) is expected, str(outcome)
        assert expected or not made
        return bool(made)

    def remember(self) -> None:
        self.seen.append((registry.history(self.project)[-1].time, dict(self.model.now)))

    @rule(source=st.integers(0, 1), dies=deaths)
    def register(self, source: int, dies: int | None) -> None:
        def operation() -> registry.Entry:
            registry.register(self.project, f"models:/{self.sources[source]}")
            return registry.history(self.project)[-1]

        if self.attempt(operation, dies, expected=True):
            entry = registry.history(self.project)[-1]
            self.model.digests[entry.version] = entry.digest
            self.model.move("dev", entry.version)
            self.remember()

    @rule(version=versions, passes=st.booleans())
    def judge(self, version: int, passes: bool) -> None:
        if version not in self.model.digests:
            return
        path = self.project.path("labels", "p2")
        facts = {
            "digest": self.model.digests[version],
            "version": version,
            "champion_digest": self.model.champion,
            "gates": registry.gates_digest(self.project),
            "inputs": {str(path.relative_to(self.project.root)): data.fingerprint_file(path)},
        }
        verdict = Report("Gates", (Row("x", 1.0, ">= 0", "passed" if passes else "failed"),), facts)
        with tracking.start_run(self.project):
            registry.log_verdict(self.project, version, verdict)
        self.model.verdicts[version] = (verdict_digest(verdict), passes, self.model.champion)

    @rule(version=versions, stage=stages, actor=actors, force=forces, dies=deaths)
    def promote(self, version: int, stage: str, actor: str, force: bool, dies: int | None) -> None:
        project = replace(self.project, actor=actor)
        expected = self.model.may_promote(version, stage, actor, force)
        if self.attempt(lambda: gates.promote(project, version, stage, force=force, reason="test"), dies, expected):
            self.model.promote(version, stage)
            self.remember()

    @rule(stage=stages, to=st.one_of(st.none(), st.none(), versions), dies=deaths)
    def rollback(self, stage: str, to: int | None, dies: int | None) -> None:
        target = self.model.rollback_target(stage, to)
        if self.attempt(lambda: registry.rollback(self.project, stage, to=to, reason="test"), dies, target is not None):
            assert target is not None
            self.model.rollback(stage, target)
            self.remember()

    @rule(stage=stages, dies=deaths)
    def freeze(self, stage: str, dies: int | None) -> None:
        expected = stage != "dev" and stage not in self.model.frozen
        if self.attempt(lambda: registry.freeze(self.project, stage, reason="test"), dies, expected):
            self.model.frozen.add(stage)

    @rule(stage=stages, dies=deaths)
    def unfreeze(self, stage: str, dies: int | None) -> None:
        expected = stage in self.model.frozen
        if self.attempt(lambda: registry.unfreeze(self.project, stage, reason="test"), dies, expected):
            self.model.frozen.remove(stage)

    @rule(version=versions, stage=stages, actor=actors, dies=deaths)
    def approve(self, version: int, stage: str, actor: str, dies: int | None) -> None:
        project = replace(self.project, actor=actor)
        expected = version in self.model.digests and stage == "prod" and actor != "ada"
        if self.attempt(lambda: registry.approve(project, version, stage, reason="test"), dies, expected):
            verdict = self.model.verdicts.get(version, ("", False, None))[0]
            self.model.approved.append((version, verdict, actor))

    @rule(version=versions, dies=deaths)
    def delete(self, version: int, dies: int | None) -> None:
        expected = self.model.may_delete(version)
        if self.attempt(lambda: registry.delete_version(self.project, version, reason="test"), dies, expected):
            del self.model.digests[version]

    @invariant()
    def everything_stands_where_the_model_says(self) -> None:
        assert standing(self.project) == self.model.now
        assert aliases(self.project) == {stage: number for stage, number in self.model.now.items() if number}

    def teardown(self) -> None:
        """Look back at every moment, and compare the ledger with the store."""
        for n, (time, was) in enumerate(self.seen):
            later = self.seen[n + 1][0] if n + 1 < len(self.seen) else time + timedelta(days=1)
            for moment in (time, later - timedelta(microseconds=1)):
                found = registry.as_of(self.project, moment)
                assert {stage: entry.version if entry else None for stage, entry in found.items()} == was
        report = registry.check_store(self.project)
        assert report.passed, str(report)
        known = {v.version for v in registry.list_versions(self.project)}
        assert set(self.model.digests) <= known


@given(st.lists(st.tuples(st.booleans(), versions)))
def test_rollbacks_go_back_through_what_the_model_says(moves: list[tuple[bool, int]]) -> None:
    model, entries = Model(digests=dict.fromkeys(range(1, 5), "")), ()
    other = ("operation", "previous", "from_version", "model_id", "digest", "verdict", "actor", "at", "reason")
    for is_rollback, number in moves:
        target = model.rollback_target("prod", number) if is_rollback else number
        if target in (None, model.now["prod"]):
            continue
        (model.rollback if is_rollback else model.move)("prod", target)
        action = "rollback" if is_rollback else "promote"
        facts = {"number": len(entries) + 1, "action": action, "stage": "prod", "version": target}
        entries = (*entries, registry.Entry(**dict.fromkeys(other, "") | facts))
        assert [entry.version for entry in replay(entries).stacks["prod"]] == model.undo["prod"]


@soak
def test_any_sequence_of_moves_and_crashes_ends_where_the_model_says(
    tmp_path_factory: pytest.TempPathFactory, migrated_store: Path, registered_twice: Project
) -> None:
    before = make_project(tmp_path_factory.mktemp("states"), migrated_store)
    copy_store(registered_twice, before)
    for number in (1, 2):
        force_to_prod(before, number)
    Registry.before = before
    Registry.store = make_project(Path(tempfile.mkdtemp(dir=tmp_path_factory.getbasetemp())), migrated_store)
    quick = settings(
        max_examples=rounds(8, 200),
        stateful_step_count=20,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )
    run_state_machine_as_test(Registry, settings=quick)  # type: ignore[no-untyped-call]
