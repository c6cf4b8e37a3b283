"""What pyproject.toml cannot say: two folders beside the package become a part of it.

`notebooks/` and `datasets/` are the only source; `rftkit.bundled` finds them in a clone and in a
wheel. Everything else about the build is in pyproject.toml.
"""

from setuptools import find_packages, setup

BUNDLED = {"rftkit._notebooks": "notebooks", "rftkit._datasets": "datasets"}

setup(packages=[*find_packages(include=["rftkit*"]), *BUNDLED], package_dir=BUNDLED)
