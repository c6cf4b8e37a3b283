"""What pyproject.toml cannot say: two folders beside the package become a part of it.

`notebooks/` and `datasets/` are the only source; `rftkit.bundled` finds them in a clone and in a
wheel. A folder of data counts as a package too: setuptools wants each one named.
"""

from setuptools import find_namespace_packages, setup

MAPPED = {"rftkit._notebooks": "notebooks", "rftkit._datasets": "datasets"}


skipped = ["*__pycache__"]
code = find_namespace_packages(include=["rftkit*"], exclude=skipped)
datasets = [f"rftkit._datasets.{name}" for name in find_namespace_packages("datasets", skipped)]

setup(
    packages=[*code, *MAPPED, *datasets],
    package_dir=MAPPED,
    package_data={
        "rftkit": ["py.typed", "views/*.css", "views/*.js", "server/*.md", "widgets/*.json"],
        "rftkit.widgets.labconfig": ["*.json"],
        "rftkit._notebooks": ["*.ipynb"],
        **{name: ["*"] for name in datasets},
    },
)
