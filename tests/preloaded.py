"""What the server of tests/workers.py imports before it forks, and the template that it compiles."""
# ruff: noqa: F401

import alembic.command
import alembic.config
import mlflow.sklearn
import mlflow.store.model_registry.sqlalchemy_store
import mlflow.store.tracking.sqlalchemy_workspace_store
import skops.io
import sqlalchemy.dialects.postgresql.psycopg
import sqlalchemy.dialects.sqlite
import workers

import mlops_lib.programs.batch
from mlops_lib.programs.notebooks import page, run

page.load_exporter()
