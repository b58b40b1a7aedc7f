"""What carries a project or a model from one place to another: a new project of a table, a model of plain MLflow.

>>> from mlops_lib.programs import release
>>> print(release.survey_table(table, "churned"))  # doctest: +SKIP
"""

from mlops_lib.programs.release.adopting import adopt_model
from mlops_lib.programs.release.new import Table, create_project, raise_for_folder, read_source
from mlops_lib.programs.release.survey import Survey, survey_table

__all__ = ["Survey", "Table", "adopt_model", "create_project", "raise_for_folder", "read_source", "survey_table"]
