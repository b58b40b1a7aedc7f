"""Many processes promote from the same head: one wins each round, on every store, and the others are told who."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import workers
from conftest import register_model
from mlflow.entities.model_registry import ModelVersion
from rounds import rounds, soak
from stages import aliases

from mlops_lib import gates, registry
from mlops_lib.errors import RefusedError
from mlops_lib.project import Project
from mlops_lib.registry import moves
from mlops_lib.tracking import store

N_PROCESSES, N_ROUNDS = rounds(8, 16), rounds(4, 20)
GROUPS = ((1, 2, 3, 4), (5, 6, 7, 8))  # versions of even and of odd rounds: none is in staging already


def race(project: Project, number: int) -> list[registry.Entry | Exception]:
    """Promote once a round; all have read the same head before one of them writes.

    A process verifies the files of each version once: they stay, and what races are the ledger's entries.
    """
    barrier, append, verify = workers.barrier(), moves.append, moves.verify_files
    answers: list[registry.Entry | Exception] = []
    verified: set[int] = set()

    def verify_once(project: Project, made: ModelVersion, ledger: Any) -> None:
        if int(made.version) not in verified:
            verify(project, made, ledger)
            verified.add(int(made.version))

    def append_together(*arguments: Any, **facts: Any) -> registry.Entry:
        barrier.wait(timeout=3500)
        return append(*arguments, **facts)

    moves.append, moves.verify_files = append_together, verify_once
    for n in range(N_ROUNDS):
        group = GROUPS[n % 2]
        try:
            reason = f"round {n}, process {number}"
            entry = gates.promote(project, group[number % len(group)], "staging", force=True, reason=reason)
            answers.append(entry)
        except Exception as error:  # noqa: BLE001 - the test looks at it
            answers.append(error)
        barrier.wait(timeout=3500)
    return answers


@soak
@pytest.mark.timeout(3600)
def test_of_many_promoters_from_one_head_exactly_one_wins(
    any_store_project: Project, record: Callable[..., None]
) -> None:
    project = any_store_project
    first = register_model(project)
    for _ in range(7):
        registry.register(project, f"models:/{first.model_id}")
    n_before = len(registry.history(project))
    answers = workers.run_at_once(race, [(project, n) for n in range(N_PROCESSES)], timeout_s=3500)
    entries = registry.history(project)[n_before:]
    assert len(entries) == N_ROUNDS
    for n, entry in enumerate(entries):
        told = [found[n] for found in answers]  # type: ignore[index]
        assert [answer for answer in told if isinstance(answer, registry.Entry)] == [entry]
        losers = [answer for answer in told if not isinstance(answer, registry.Entry)]
        assert [(type(loser), loser.case) for loser in losers] == [(RefusedError, "head_moved")] * (N_PROCESSES - 1)
        assert all(str(entry) in str(loser) for loser in losers)
    assert aliases(project)["staging"] == entries[-1].version
    assert registry.check_store(project).passed
    record(4, ours="one wins, the others are told who was faster")


# --- plain MLflow ------------------------------------------------------------------------------------------------


def move_alias(uri: str, name: str, version: str) -> tuple[str, str]:
    """Move an alias as tutorials do: look, decide, set."""
    client = store.connect(uri)
    seen = client.get_registered_model(name).aliases["champion"]
    workers.barrier().wait(timeout=600)
    client.set_registered_model_alias(name, "champion", version)
    return str(seen), version


def test_of_two_that_move_a_plain_alias_both_believe_they_did(
    any_store_project: Project, record: Callable[..., None]
) -> None:
    project = any_store_project
    client, name = store.connect(project.tracking_uri), f"{project.name}-plain"
    model = register_model(project).model_id
    client.create_registered_model(name)
    for _ in range(3):
        client.create_model_version(name, f"models:/{model}", model_id=model)
    client.set_registered_model_alias(name, "champion", "1")
    calls = [(project.tracking_uri, name, version) for version in ("2", "3")]
    assert workers.run_at_once(move_alias, calls) == [("1", "2"), ("1", "3")]  # type: ignore[arg-type]
    assert str(client.get_registered_model(name).aliases["champion"]) in ("2", "3")
    record(4, plain="both are told that they did it, and one move is lost")
