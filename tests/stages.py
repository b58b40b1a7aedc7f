"""How tests bring versions through stages, and look where everything stands."""

from __future__ import annotations

from mlops_lib import gates, registry, tracking
from mlops_lib.project import Project
from mlops_lib.registry.ledger import open_ledger
from mlops_lib.report import Report
from mlops_lib.tracking import store


def judge(project: Project, version: int) -> Report:
    """Run the project's gates on period p2 and log the verdict, as 03_validate does."""
    champion = registry.current(project, project.production)
    releases = [registry.load_model(project, number) if number else None for number in (version, champion)]
    verdict = gates.check_gates(project, *releases, "p2")
    with tracking.start_run(project):
        registry.log_verdict(project, version, verdict)
    return verdict


def bring_to_prod(project: Project, version: int) -> None:
    """Judge a version and move it through all stages."""
    judge(project, version)
    for stage in ("staging", "prod"):
        gates.promote(project, version, stage)


def force_to_prod(project: Project, version: int) -> None:
    for stage in ("staging", "prod"):
        gates.promote(project, version, stage, force=True, reason="test")


def standing(project: Project) -> dict[str, int | None]:
    return {stage: registry.current(project, stage) for stage in project.stages}


def aliases(project: Project) -> dict[str, int]:
    names = store.connect(project.tracking_uri).get_registered_model(project.name).aliases
    return {alias: int(version) for alias, version in names.items()}


def ledger_of(project: Project) -> str:
    """Return the id of the run that holds the moves; an empty text before the first entry."""
    return open_ledger(project)[1].moves.run_id


def registrations_of(project: Project) -> str:
    """Return the id of the run that holds the registrations."""
    return open_ledger(project)[1].registrations.run_id


def clone(project: Project, n_versions: int) -> list[int]:
    """Register one logged model several times; return the versions."""
    first = registry.get_version(project, 1)
    return [registry.register(project, f"models:/{first.model_id}").version for _ in range(n_versions)]
