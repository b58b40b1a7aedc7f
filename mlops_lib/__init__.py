"""A notebook-first path from an idea to a model in production, over MLflow and papermill.

Importing this package loads neither MLflow nor pandas: import the wing you need,
``from mlops_lib import registry``. The wings and who may import whom are listed in the README.
"""

__version__ = "0.1.0"
