"""What a model's files are: their manifest, the types they may contain, and the only way to load them.

MLflow keeps no checksum of anything and trusts the list of types that a model file brings along. Here a model is
loaded in one order only: limits, digests, metadata read as data, the archive's own limits, skops with *our* reviewed
list, the bounds of everything that compiled code would index without looking, then a warm-up against stored
predictions. A file with one byte changed is refused by name before any of it is deserialized.

>>> files = load_model_files(folder, manifest, name="Version 7 of 'toy'")  # doctest: +SKIP
"""

from mlops_lib.models.loader import (
    COMPILED_FILE,
    CONTRACT_FILE,
    MLMODEL_FILE,
    MODEL_FILE,
    PROFILE_FILE,
    TRAINING_FILE,
    WARMUP_FILE,
    ModelFiles,
    load_model_files,
    read_model,
    read_warmup,
    warmup_json,
)
from mlops_lib.models.manifest import (
    DIGEST_TAG,
    MANIFEST_TAG,
    compute_digest,
    compute_manifest,
    raise_for_files,
    raise_for_sizes,
)
from mlops_lib.models.rehearsal import find_packages
from mlops_lib.models.types import TRUSTED_TYPES, list_trusted_types

__all__ = [
    "COMPILED_FILE",
    "CONTRACT_FILE",
    "DIGEST_TAG",
    "MANIFEST_TAG",
    "MLMODEL_FILE",
    "MODEL_FILE",
    "PROFILE_FILE",
    "TRAINING_FILE",
    "TRUSTED_TYPES",
    "WARMUP_FILE",
    "ModelFiles",
    "compute_digest",
    "compute_manifest",
    "find_packages",
    "list_trusted_types",
    "load_model_files",
    "raise_for_files",
    "raise_for_sizes",
    "read_model",
    "read_warmup",
    "warmup_json",
]
