"""The HTTP service that follows a stage."""

from mlops_lib.programs.service.app import (
    FORMS,
    LOOK_S,
    MAX_PAUSE_S,
    Follower,
    Served,
    create_app,
    predict,
    raise_for_port,
    read_payload,
    serve,
)

__all__ = [
    "FORMS",
    "LOOK_S",
    "MAX_PAUSE_S",
    "Follower",
    "Served",
    "create_app",
    "predict",
    "raise_for_port",
    "read_payload",
    "serve",
]
