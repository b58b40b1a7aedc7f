"""Many processes register at once: none is lost, none counted twice, every manifest verifies."""

from __future__ import annotations

from collections.abc import Callable

import workers
from conftest import log_toy_model
from rounds import rounds, soak

from mlops_lib import registry
from mlops_lib.project import Project
from mlops_lib.registry.verify import check_store

N_PROCESSES, N_EACH, N_EACH_ON_A_SERVER = rounds(4, 8), rounds(4, 15), rounds(2, 4)


@soak
def test_versions_that_many_processes_register_at_once_are_all_there(
    any_store_project: Project, record: Callable[..., None]
) -> None:
    project = any_store_project
    uri, is_server = log_toy_model(project).model_uri, project.tracking_uri.startswith("http")
    n_each = N_EACH_ON_A_SERVER if is_server else N_EACH
    answers = workers.run_at_once(workers.register_many, [(project, uri, n_each)] * N_PROCESSES)
    failed = [answer for answer in answers if isinstance(answer, Exception)]
    assert not failed
    made = [version for answer in answers for version in answer]  # type: ignore[attr-defined]
    everyone = list(range(1, N_PROCESSES * n_each + 1))
    assert sorted(made) == everyone
    assert sorted(version.version for version in registry.list_versions(project)) == everyone
    assert sorted(entry.version for entry in registry.history(project)) == everyone
    assert check_store(project, everything=True).passed
    record(3, ours="none lost, none twice, every manifest verifies, on SQLite, on PostgreSQL and on a server")
