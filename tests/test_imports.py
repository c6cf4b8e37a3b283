"""Which room may import which, and what an import may load."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Collection, Iterator, Mapping
from importlib import metadata
from pathlib import Path

import pytest

import rftkit

PACKAGE = Path(__file__).parents[1] / "rftkit"

TIERS = (
    {
        "errors",
        "privacy",
        "safetext",
        "settings",
        "wholefile",
        "fingerprints",
        "growing",
        "backoff",
        "bundled",
        "lazy",
        "formats",
        "strictjson",
        "jsontext",
        "yamltext",
        "jsondocuments",
        "outputitems",
        "wording",
        "integrations",
        "t_distribution",
    },
    {"rows", "examples", "prompts", "chattemplates", "diagnosis", "hyperparameters", "lineage"},
    {"graders"},
    {"tools"},
    {"client"},
    {"datasets", "jobs", "evals", "importer"},
    {"ladder"},
    {"views"},
    {"widgets", "reports"},
    {"cli"},
)
"""An import goes to an earlier tier, or stays in its tier."""

HOME_OF = {name: home for home, names in rftkit._HOMES.items() for name in names}
"""Public name -> the room it comes from."""
SERVER_MAY = {
    "chattemplates",
    "rows",
    "examples",
    "hyperparameters",
    "lineage",
    "diagnosis",
    "graders",
    "tools",
    "settings",
    "errors",
    "privacy",
    "safetext",
    "wholefile",
    "fingerprints",
    "formats",
    "jsontext",
    "strictjson",
    "jsondocuments",
    "growing",
    "backoff",
    "wording",
    "integrations",
    "lazy",
    "t_distribution",
}

SERVER_MAY_ROOMS = {
    "engine": {"engine"},
    "store": {"store"},
    "training": {"engine", "store", "training"},
    "inference": {"engine", "store", "training", "inference"},
    "worker": {"engine", "store", "training", "inference", "worker"},
    "evals": {"engine", "store", "training", "inference", "evals"},
    "api": {"engine", "store", "training", "inference", "evals", "api"},
    "http": {"engine", "store", "training", "inference", "evals", "api", "http"},
    "__main__": {"engine", "store", "training", "inference", "evals", "api", "http"},
}
"""What a room of the server imports: engine, store ← training ← inference ← worker, evals ← api ←
http. Nothing imports the worker: it is a process of its own, started by its name.
"""
FRAMEWORKS = {"fastapi", "starlette", "uvicorn"}
"""What only the HTTP process loads."""

HEAVY = {
    "torch",
    "transformers",
    "papermill",
    "ipywidgets",
    "pandas",
    "matplotlib",
    "nltk",
    "openai",
    "numpy",
    "IPython",
    "pydantic",
    "rftkit.server",
}
"""None of them is loaded by `import rftkit` or `rftkit --help`."""

NAMED_OTHERWISE = {"yaml": "pyyaml", "mlflow": "mlflow-skinny"}
"""Module -> its name in pyproject.toml."""
COMES_WITH = {
    "llvmlite": "numba",
    "IPython": "ipywidgets",
    "httpx2": "openai",
    "huggingface_hub": "transformers",
    "jupyter_core": "jupyterlab",
    "pydantic_core": "pydantic",
    "referencing": "jsonschema",
    "starlette": "fastapi",
    "tokenizers": "transformers",
    "traitlets": "ipywidgets",
}
"""Module -> the package that requires it and whose own interface it is."""


def test_every_room_has_a_place() -> None:
    rooms = {path.stem for path in PACKAGE.iterdir() if is_module(path)} - {"__init__"}
    assert rooms <= set().union(*TIERS) | {"server"}


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path)[len(str(PACKAGE)) + 1 :]
)
def test_imports_go_down_only(path: Path) -> None:
    room = room_of(path)
    for line, imported in imported_rooms(path):
        assert may(room, imported), f"{path}:{line}: {room} imports {imported}"


@pytest.mark.parametrize(
    "path",
    sorted((PACKAGE / "server").rglob("*.py")),
    ids=lambda path: str(path)[len(str(PACKAGE)) + 1 :],
)
def test_the_rooms_of_the_server_import_in_one_order(path: Path) -> None:
    room = path.relative_to(PACKAGE / "server").parts[0].removesuffix(".py")
    if room == "__init__":
        return
    for line, imported in imported_modules(path):
        if imported.startswith("server."):
            other = imported.split(".")[1]
            assert other in SERVER_MAY_ROOMS[room], f"{path}:{line}: {room} imports {other}"


def test_the_two_engines_do_not_import_each_other() -> None:
    for module, target in edges(graph()):
        kinds = {
            name.split(".")[2] for name in (module, target) if name.startswith("server.engine.")
        }
        assert not kinds >= {"torch", "tinker"}, f"{module} imports {target}"


def test_no_modules_import_each_other() -> None:
    """Neither within a room nor across rooms, through however many modules in between."""
    knots = [sorted(knot) for knot in knots_of(graph())]
    assert not knots, "\n".join(f"import each other: {', '.join(knot)}" for knot in knots)


def test_no_rooms_import_each_other() -> None:
    rooms = {(module.split(".")[0], target.split(".")[0]) for module, target in edges(graph())}
    assert not [(a, b) for a, b in sorted(rooms) if a < b and (b, a) in rooms]


def test_the_process_that_owns_the_models_loads_no_web_framework() -> None:
    program = "import json, sys, rftkit.server.worker.worker; print(json.dumps(list(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert not FRAMEWORKS & set(json.loads(done.stdout))


def test_the_rule_itself() -> None:
    assert may("jobs", "client")
    assert not may("jobs", "views")
    assert not may("cli", "server")
    assert may("server", "graders")
    assert not may("server", "client")
    assert not may("graders", "client")
    assert knots_of({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == {frozenset("bc")}


@pytest.mark.parametrize(
    "statement", ["import rftkit", "import rftkit.cli.app", "import rftkit.jobs"]
)
def test_an_import_loads_nothing_heavy(statement: str) -> None:
    program = (
        f"import sys, time, json; start = time.perf_counter(); {statement}; "
        "print(json.dumps([time.perf_counter() - start, sorted(sys.modules)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    seconds, modules = json.loads(done.stdout)
    print(f"{statement}: {seconds:.3f} s")
    assert not HEAVY & set(modules)


def test_every_package_that_is_imported_is_declared() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    declared = {distribution(line) for lines in lists for line in lines}
    for module in third_party():
        if (parent := COMES_WITH.get(module)) is not None:
            assert parent in declared
            assert distribution(module) in map(distribution, metadata.requires(parent) or ())
        else:
            assert distribution(NAMED_OTHERWISE.get(module, module)) in declared, module


def distribution(requirement: str) -> str:
    """The name in a requirement, or a module's, as indexes write it."""
    return re.split(r"[\s;<>=~!\[]", requirement)[0].lower().replace("_", "-")


def third_party() -> set[str]:
    """The packages of others that any file imports, those inside functions too."""
    found: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found - sys.stdlib_module_names - {"rftkit"}


def test_every_room_has_a_folder_of_tests() -> None:
    rooms = {path.parent.relative_to(PACKAGE) for path in PACKAGE.glob("*/__init__.py")}
    rooms |= {path.parent.relative_to(PACKAGE) for path in PACKAGE.glob("server/*/__init__.py")}
    tests = {
        path.parent.relative_to(Path(__file__).parent)
        for path in Path(__file__).parent.rglob("test_*.py")
    }
    assert rooms - {Path("server")} <= tests


def is_module(path: Path) -> bool:
    return path.suffix == ".py" or (path / "__init__.py").exists()


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def may(room: str, imported: str) -> bool:
    if room == imported:
        return True
    if imported == "server":
        return False
    if room == "server":
        return imported in SERVER_MAY
    return room == "__init__" or tier(imported) <= tier(room)


def tier(room: str) -> int:
    return next(index for index, rooms in enumerate(TIERS) if room in rooms)


def imported_rooms(path: Path) -> Iterator[tuple[int, str]]:
    """Line and room of every import of rftkit in a file, those inside functions too."""
    for line, module in imported_modules(path):
        yield line, module.partition(".")[0]


def imported_modules(path: Path) -> Iterator[tuple[int, str]]:
    """Line and name, without `rftkit.`, of every import of rftkit in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
            if node.module == "rftkit":
                names = [f"rftkit.{HOME_OF.get(alias.name, alias.name)}" for alias in node.names]
            elif node.module == "rftkit.server":
                names = [f"rftkit.server.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "rftkit" and rest:
                yield node.lineno, rest


def graph() -> dict[str, set[str]]:
    """Module, without `rftkit.`, -> the modules of rftkit that it imports, for types too."""
    modules = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
        if path.parent != PACKAGE or path.stem != "__init__"
    }
    return {module: set(targets(path, modules)) - {module} for module, path in modules.items()}


def targets(path: Path, modules: Collection[str]) -> Iterator[str]:
    """The modules that a file imports: `from package import module` names the module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [
                name if name.removeprefix("rftkit.") in modules else node.module for name in inner
            ]
        else:
            continue
        yield from {name.removeprefix("rftkit.") for name in names} & set(modules)


def edges(modules: Mapping[str, set[str]]) -> set[tuple[str, str]]:
    return {(module, target) for module, found in modules.items() for target in found}


def knots_of(modules: Mapping[str, set[str]]) -> set[frozenset[str]]:
    """Modules that reach each other through imports."""
    reached = {module: reachable(module, modules) for module in modules}
    return {
        frozenset(other for other in found if module in reached[other])
        for module, found in reached.items()
        if module in found
    }


def reachable(start: str, modules: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    todo = [*modules[start]]
    while todo:
        if (module := todo.pop()) not in found:
            found.add(module)
            todo += modules[module]
    return found


def test_the_tree_in_the_readme_is_the_tree_of_the_folder() -> None:
    text = (PACKAGE.parent / "README.md").read_text(encoding="utf-8")
    tree = text[text.index("```\nrftkit/") :].split("```")[1]
    lines = [line[:34] for line in tree.splitlines() if line.startswith("  ")]
    named = {word.strip("/").removesuffix(".py") for line in lines for word in line.split()}
    rooms = {path.stem for path in PACKAGE.iterdir() if is_module(path)} - {"__init__"}
    server = {path.name for path in (PACKAGE / "server").iterdir() if path.is_dir()}
    assert named == rooms | (server - {"__pycache__"})
