"""The notebooks and datasets that come with rftkit, in a clone and in a wheel."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from rftkit import bundled, reports
from rftkit.bundled import bundled_folder
from rftkit.errors import NotFoundError

CLONE = Path(__file__).parents[1]
BUILD = "import sys; from setuptools import build_meta; print(build_meta.{}(sys.argv[1]))"
USE = """
import json
from pathlib import Path
import rftkit
from rftkit import datasets
from rftkit.cli.lab import copy_notebooks
from rftkit.reports import notebook_path
print(json.dumps({
    "package": rftkit.__file__,
    "datasets": {name: str(datasets.bundled(name).train) for name in datasets.bundled_names()},
    "report": str(notebook_path("report_job")),
    "copied": copy_notebooks(Path("mine")).new,
}))
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the clone: a build writes into the folder that it builds."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CLONE / name, folder)
    for name in ("rftkit", "notebooks", "datasets"):
        skip = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        shutil.copytree(CLONE / name, folder / name, ignore=skip)
    return folder


def build(what: str, source: Path, out: Path) -> Path:
    done = subprocess.run(
        [sys.executable, "-c", BUILD.format(what), str(out)],
        cwd=source,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "is absent from" not in done.stderr  # every folder of data is declared
    return out / done.stdout.splitlines()[-1]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file by its path in the folder, without what Python and Jupyter leave behind."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not {"__pycache__", ".ipynb_checkpoints"} & set(path.parts)
    }


def test_a_wheel_made_from_the_sdist_is_whole(source: Path, tmp_path: Path) -> None:
    sdist = build("build_sdist", source, tmp_path)
    shutil.unpack_archive(sdist, tmp_path / "unpacked", filter="data")
    wheel = build("build_wheel", next((tmp_path / "unpacked").iterdir()), tmp_path)
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    zipfile.ZipFile(wheel).extractall(installed)
    empty.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", USE],
        cwd=empty,
        env={"PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    used = json.loads(done.stdout)
    package = Path(used["package"]).parent
    assert package == installed / "rftkit"
    assert set(used["datasets"]) == {
        "contract_facts", "policy_lookup", "security_review", "tiny_copy",
    }  # fmt: skip
    found = [*used["datasets"].values(), used["report"]]
    assert all(Path(path).is_relative_to(package) for path in found)
    assert "00_tour.ipynb" in used["copied"]
    for name in ("notebooks", "datasets"):  # all of them came, and using them wrote nothing
        assert contents(package / f"_{name}") == contents(CLONE / name)


def test_a_report_on_a_bundled_dataset_needs_its_name_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = reports.run("report_dataset", "page.html", train="tiny_copy")
    assert "Dataset tiny_copy" in page.read_text()


def test_a_clone_uses_its_own_folders() -> None:
    assert bundled_folder("notebooks") == CLONE / "notebooks"
    assert bundled_folder("datasets") == CLONE / "datasets"


def test_another_package_called_datasets_is_not_taken_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "__init__.py").write_text("# the one of Hugging Face")
    monkeypatch.setattr(bundled.resources, "files", lambda _: tmp_path / "rftkit")
    with pytest.raises(NotFoundError, match="install it again: pip install"):
        bundled_folder("datasets")
