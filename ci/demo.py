"""The main job, as a person would do it: each step is one `mlops` command, printed as it is run.

explore → train four candidates on January to March → validate the best on April → staging → smoke test → prod → score
May → its labels arrive: drift and live quality → the rest of the year is operated, month by month, with the clock at
each month's end: scored, judged, trained again where the policy says so → status page. Running it again works and says
what already existed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MLOPS = Path(sys.executable).with_name("mlops")
TRAIN = ["-p", "train_from=2013-01", "-p", "train_until=2013-03", "-p", "max_rows=none"]
CANDIDATES = {
    "logistic regression": ["-p", "family=logistic"],
    "logistic regression, strongly regularized": ["-p", "family=logistic", "-p", "regularization=100.0"],
    "gradient boosting": ["-p", "family=boosting"],
    "gradient boosting, slow and small": ["-p", "learning_rate=0.05", "-p", "max_leaf_nodes=15"],
}
VALIDATE_ON, SCORE, LABELS_KNOWN_BY = "2013-04", "2013-05", "2013-06-02"
MONTH_ENDS = [*(f"2013-{month:02d}-01T06:00" for month in range(6, 13)), "2014-01-01T06:00"]  # UTC
started = time.monotonic()


def say(text: str) -> None:
    """Print one progress line with the time since the start."""
    print(f"{time.monotonic() - started:6.1f} s  {text}", flush=True)


def mlops(*arguments: str, ok: tuple[int, ...] = (0,)) -> Any:
    """Run one command, shown as a person would type it, and return what its --json says."""
    shown = " ".join(arguments)
    print(f"          $ mlops {shown}", flush=True)
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_RUN_ID"}
    environment.setdefault("OMP_NUM_THREADS", "1")  # on shared cores two threads are slower than one
    environment.setdefault("MLOPS_STATE_DIR", str(ROOT / "runs" / ".state"))  # what is seen of a clone goes with it
    done = subprocess.run(
        [MLOPS, *arguments, "--json"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode not in ok:
        sys.exit(f"'mlops {shown}' ended with {done.returncode}; the demo stops here.")
    return json.loads(done.stdout)


def train() -> list[dict[str, Any]]:
    """Train the candidates that do not exist yet; return what each run recorded."""
    found = []
    for name, options in CANDIDATES.items():
        done = mlops("run", "02_train", "--cached", *TRAIN, *options)
        result = done["result"]
        again = " (already trained)" if done["cached"] else ""
        say(f"{name}: version {result['version']}, held-out ROC AUC {result['val_roc_auc']:.3f}{again}")
        found.append({**result, "name": name, "html": done["html"]})
    return found


def move(version: int, stage: str, reason: str) -> None:
    """Promote a version, unless it is there already."""
    shown = mlops("show", str(version))
    if stage in shown["stages"]:
        say(f"version {version} is in {stage} already")
        return
    entry = mlops("promote", str(version), stage, "--reason", reason)
    say(f"version {version} moved to {stage} by {entry['actor']}, on verdict {entry['verdict'][:12]}…")


def operate(moment: str) -> dict[str, Any]:
    """Let one tick do what is due at a moment; say what it did."""
    tick: dict[str, Any] = mlops("operate", "--as-of", moment, ok=(0, 3))
    n_scored = sum(tick["scored"][period].get("n_scored", 0) for period in tick["periods"])
    versions = sorted({tick["scored"][period]["version"] for period in tick["periods"]})
    did = f"{', '.join(tick['periods']) or 'nothing new'}: {n_scored:,} scored with version {versions}"
    if tick["trained"]:
        went = f"now in {tick['promoted'][-1]}" if tick["promoted"] else "it does not pass its gates"
        did = f"{did}; version {tick['trained']} trained, {went}"
    say(did)
    return tick


def show_year(ticks: list[dict[str, Any]]) -> None:
    """Print how good production was each month, and what was trained again why."""
    statuses = mlops("status", ok=(0, 3))["qualities"]
    print(f"\n{'month':8}  {'version':7}  {'ROC AUC':23}  {'limit':7}  trained again, and why")
    trained = {tick["periods"][-1]: tick for tick in ticks if tick["trained"] and tick["periods"]}
    for quality in statuses:
        value, low, high, limit = (f"{quality[name]:.3f}" for name in ("value", "low", "high", "limit"))
        tick = trained.get(quality["period"], {})
        went = "released" if tick.get("promoted") else "refused by its gates"
        why = f"version {tick['trained']}, {went}: {'; '.join(tick['reasons'])}" if tick else ""
        print(f"{quality['period']:8}  {quality['version']:7}  {value} [{low}, {high}]    {'>= ' + limit:9}  {why}")


def main() -> None:
    """Run every step; stop at the first that fails."""
    reports: dict[str, str] = {}
    subprocess.run([MLOPS, "ingest"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    say("336,776 flights of 2013 are in data/, a file a month")

    done = mlops("run", "01_explore", "--cached")
    reports["explored"] = done["html"]
    say(f"explored {done['result']['n_flights']:,} flights, {done['result']['late_share']:.1%} late")

    candidates = train()
    best = max(candidates, key=lambda candidate: candidate["val_roc_auc"])
    reports["best candidate"] = best["html"]
    version = best["version"]
    say(f"best of {len(candidates)}: version {version}, {best['name']}")

    if "prod" in mlops("show", str(version))["stages"]:
        say(f"version {version} is in prod already, on its earlier verdict")
    else:
        done = mlops(
            "run", "03_validate", "-p", f"version={version}", "-p", f"period={VALIDATE_ON}", "-p", "max_rows=none"
        )
        reports["verdict"] = done["html"]
        if not done["result"]["passed"]:
            sys.exit(f"version {version} did not pass its gates; see {done['html']}")
        say(f"version {version} passed its gates on {VALIDATE_ON}, ROC AUC {done['result']['test_roc_auc']:.3f}")
        move(version, "staging", f"best of {len(candidates)} candidates")
        smoke = ROOT / "runs" / f"smoke-{version}.parquet"
        arrivals = f"data/arrivals/{VALIDATE_ON}.parquet"
        done = mlops("score", arrivals, str(smoke.relative_to(ROOT)), "--stage", "staging", "--rows", "1000")
        say(f"smoke test: {done['n_scored']} of {done['n_rows']} rows scored from staging")
        move(version, "prod", "smoke test passed")

    done = mlops("run", "04_score", "-p", "stage=prod", "-p", "beside=dev", "-p", f"period={SCORE}")
    reports["scores"] = done["html"]
    scored = done["result"]
    again = " (already scored)" if scored["already_done"] else ""
    versions = " and ".join(f"version {number}" for number in scored["versions"])
    say(f"{scored['n_scored']:,} flights of {SCORE} scored with {versions} in one pass{again}")
    say(f"prod and dev call {scored['agreement']:.1%} of these flights the same")

    done = mlops("run", "05_monitor", "-p", "stage=prod", "-p", f"period={SCORE}", "-p", f"as_of={LABELS_KNOWN_BY}")
    reports["drift and live quality"] = done["html"]
    live = done["result"]
    say(f"labels of {SCORE} are here: live ROC AUC {live['live_roc_auc']:.3f}, {live['n_drifting']} features drift")

    ticks = [operate(moment) for moment in MONTH_ENDS]
    reports["status page"] = str(sorted((ROOT / "runs").glob("06_status-*/*.html"), key=os.path.getmtime)[-1])
    prod = mlops("show", "prod")
    verdict = {row["name"]: row for row in prod["verdict"]["rows"]}
    print(f"\nDone in {time.monotonic() - started:.0f} s.\n")
    rows = [
        ("in prod", f"version {prod['version']} of '{prod['name']}' ({prod['description']})"),
        (
            "test ROC AUC",
            f"{verdict['test_roc_auc']['value']:.3f}  {verdict['test_roc_auc']['reason']}",
        ),
        ("live ROC AUC", f"{live['live_roc_auc']:.3f}  on {SCORE}, with the labels known by {LABELS_KNOWN_BY}"),
        *((name, str(Path(path).relative_to(ROOT))) for name, path in reports.items()),
        ("MLflow's pages", ".venv/bin/mlops ui"),
        ("who moved what", ".venv/bin/mlops history prod"),
        ("go back", '.venv/bin/mlops rollback prod --reason "…"'),
    ]
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name.ljust(width)}  {text}" for name, text in rows))
    show_year(ticks)


if __name__ == "__main__":
    main()
