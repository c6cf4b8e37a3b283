"""The source of a python grader before it runs: what can be checked, and what it may import.

Nothing here runs the source. `grade` may also come from an assignment or an import, which can only
be checked by loading the source; then the first grade reports the error.
"""

from __future__ import annotations

import ast
import importlib.machinery
import os
import site
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator

from rftkit.errors import GraderSpecError

__all__ = ["check_source", "executes_answers", "library_paths", "nltk_dirs", "package_dirs"]

_BUILTINS = frozenset({
    "__builtins__", "__import__", "compile", "eval", "exec", "lambdify", "parse_expr", "sympify",
})  # fmt: skip
"""Names that execute code wherever they stand, also as texts (`getattr(x, "eval")`)."""
_MEMBERS = frozenset({
    "CFullLoader", "CLoader", "CUnsafeLoader", "CodeType", "FunctionType", "ProcessPoolExecutor",
    "UnsafeLoader", "allow_pickle", "create_subprocess_exec", "create_subprocess_shell", "eval",
    "exec", "exec_module", "fork", "forkpty", "get_type_hints",
    "lambdify", "load_extension", "parse_expr", "popen", "posix_spawn", "posix_spawnp", "query",
    "read_pickle", "sympify", "system", "unsafe_load", "unsafe_load_all",
    *(f"{verb}{form}" for verb in ("exec", "spawn") for form in
      ("l", "le", "lp", "lpe", "v", "ve", "vp", "vpe")),
})  # fmt: skip
"""Names that execute code as an attribute, an import or an argument: `os.system`, `frame.query`."""
_EXECUTING_MODULES = frozenset({
    "IPython", "RestrictedPython", "asteval", "bdb", "builtins", "cProfile", "cffi", "cloudpickle",
    "code", "codeop", "ctypes", "dill", "docker", "doctest", "duckdb", "dukpy", "execnet",
    "importlib", "jinja2", "joblib", "js2py", "jsonpickle", "jupyter_client", "lupa", "mako",
    "marshal", "multiprocessing", "nbclient", "numexpr", "pandasql", "papermill", "pdb", "pexpect",
    "pickle", "pkgutil", "profile", "pty", "py_mini_racer", "pytest", "quickjs", "rpy2",
    "runpy", "sh", "shelve", "sqlalchemy", "sqlite3", "subprocess", "sympy", "timeit", "trace",
    "unittest", "zipimport",
})  # fmt: skip
"""Packages that execute their input: templates, formulas (`sympy.simplify`), pickles, SQL (which
may change a database that later answers are graded with)."""


def check_source(source: str, *, param: str | None = None) -> None:
    """Check the source without running it.

    Raises:
        GraderSpecError: a syntax error with its line, no usable `grade(sample, item)`, or an
            import of a package that is not installed. Imports inside `try` may fail.
    """

    def refuse(what: str) -> GraderSpecError:
        return GraderSpecError(f"`{param or 'source'}`: {what}", param=param)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source, "grader.py")
            compile(tree, "grader.py", "exec", dont_inherit=True)
    except SyntaxError as error:
        raise refuse(f"line {error.lineno}: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise refuse(f"cannot be compiled: {error}") from None
    _check_signature(tree, refuse)
    for line, package in _imports(tree):
        if not _is_installed(package):
            raise refuse(
                f"line {line} imports {package!r}, which is not installed here; "
                f"type: pip install {package} (the hosted image's packages: "
                "pip install 'rftkit[grader-image]')"
            )


def executes_answers(source: str) -> bool:
    """Whether a source names something that can execute code; when in doubt, True."""
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return True  # unreadable source could do anything
    return any(_executes(node) for node in nodes) or any(
        package in _EXECUTING_MODULES for node in nodes for _, package in _imports_of(node)
    )


def _executes(node: ast.AST) -> bool:
    match node:
        case ast.Name(id=name) | ast.Constant(value=str(name)):
            return name in _BUILTINS
        case ast.keyword(arg=str(name)) | ast.alias(name=name):
            return name in _MEMBERS | _BUILTINS
        case ast.Attribute(value=ast.Name(id="yaml"), attr="Loader" | "FullLoader"):
            return True
        case ast.Attribute(value=ast.Name(id="platform"), attr="system"):
            return False
        case ast.Attribute(attr=name):
            return name in _MEMBERS
    return False


def _check_signature(tree: ast.Module, refuse: Callable[[str], GraderSpecError]) -> None:
    """`grade` must be bound at the top level; a `def` must also take (sample, item)."""
    bound: list[ast.AST] = [node for node in _top_level(tree) if "grade" in _binds(node)]
    if not bound:
        raise refuse("it must define grade(sample, item)")
    last = bound[-1]
    if isinstance(last, ast.AsyncFunctionDef):
        raise refuse(f"line {last.lineno}: grade must be a plain function, not async")
    if isinstance(last, ast.FunctionDef):
        given = last.args
        places = len(given.posonlyargs) + len(given.args)
        required = places - len(given.defaults)
        needs_keywords = any(default is None for default in given.kw_defaults)
        if required > 2 or (places < 2 and not given.vararg) or needs_keywords:
            raise refuse(f"line {last.lineno}: grade must take exactly (sample, item)")


def _top_level(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes that run when the module loads, not those inside functions and classes."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from _top_level(child)


def _binds(node: ast.AST) -> set[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case ast.Name(id=name, ctx=ast.Store()):
            return {name}
        case ast.alias(name=name, asname=other):
            return {"grade" if name == "*" else other or name}
    return set()


def _imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Try):
            continue
        yield from _imports_of(node)
        yield from _imports(node)


def _imports_of(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and package of what one statement imports."""
    if isinstance(node, ast.Import):
        yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        yield node.lineno, node.module.partition(".")[0]


def _is_installed(package: str) -> bool:
    if package in sys.stdlib_module_names or package in sys.builtin_module_names:
        return True
    return importlib.machinery.PathFinder.find_spec(package, package_dirs()) is not None


def package_dirs() -> list[str]:
    """Return the folders of installed packages, without the project, even if it is editable."""
    dirs = [*site.getsitepackages(), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    if site.ENABLE_USER_SITE:
        dirs.append(site.getusersitepackages())
    return [path for path in dict.fromkeys(dirs) if os.path.isdir(path)]


def library_paths() -> list[str]:
    """The interpreter's standard library and the system's shared ones."""
    own = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
    own += [
        f"{prefix}/{name}" for prefix in (sys.prefix, sys.base_prefix) for name in ("lib", "lib64")
    ]
    system = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache"]
    system += ["/etc/localtime", "/usr/share/zoneinfo"]
    return [path for path in dict.fromkeys([*own, *system, *nltk_dirs()]) if os.path.exists(path)]


def nltk_dirs() -> list[str]:
    """Return the folders of nltk's corpora, which the hosted image has; none is downloaded."""
    roots = [f"{sys.prefix}/nltk_data", f"{sys.prefix}/share/nltk_data", "/usr/share/nltk_data"]
    roots += ["/usr/local/share/nltk_data", os.path.expanduser("~/nltk_data")]
    return [path for path in roots if os.path.isdir(path)]
