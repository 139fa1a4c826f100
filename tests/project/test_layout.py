"""Import rules and forbidden functions of the package, as in docs/architecture.md."""

from __future__ import annotations

import ast
import dataclasses
import graphlib
import importlib.metadata
import pathlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator

import pytest
from paths import ROOT

FILES = sorted((ROOT / "jaxclip").rglob("*.py"))

# The parts of the package that may import only the parts named here (and themselves).
MAY_IMPORT = {
    "errors": set(),
    "config": {"errors"},
    "parsing": {"errors"},
    "inputs": {"errors", "config", "parsing"},
    "sharding": {"errors", "config", "parsing"},
    "context": {"errors", "config", "parsing", "sharding"},
    "towers": {"errors", "config", "parsing", "sharding", "context"},
    "losses": {"errors", "config", "parsing", "sharding"},
    "methods": {"errors", "config", "parsing", "sharding", "context", "inputs", "towers", "losses"},
    "schedule": {"errors", "config", "parsing"},
    "lookahead": set(),
    "stopping": set(),
    "watch": set(),
    "progress": set(),
    "lock": {"errors", "progress"},
    "paths": {"errors"},
    "exit_status": {"errors", "stopping", "watch"},
    "checkpoint": {"errors", "exit_status", "io", "lock", "paths", "progress", "stopping", "upgrade"},
    "history": {"errors", "config", "parsing", "schedule"},
    "recipes": {"errors", "config", "parsing", "context", "sharding", "towers"},
    "optimizer": {"errors", "config", "parsing", "schedule", "lookahead"},
    "device_augmentation": {"errors", "config", "parsing", "inputs", "context", "sharding"},
    "step": {
        "errors",
        "config",
        "parsing",
        "sharding",
        "context",
        "inputs",
        "towers",
        "losses",
        "methods",
        "optimizer",
        "schedule",
        "lookahead",
    },
    "plan": {
        "errors",
        "exit_status",
        "io",
        "quiet",
        "command_line",
        "config",
        "parsing",
        "sharding",
        "context",
        "inputs",
        "towers",
        "losses",
        "methods",
        "optimizer",
        "device_augmentation",
        "step",
    },
}

# Packages that only these files may import: a prefix of the path inside jaxclip/.
ONLY_IN = {
    "tensorflow": ("data/",),
    "tensorflow_datasets": ("data/",),
    "tensorflow_text": ("data/",),
    "clu": ("monitor.py",),
    "orbax": ("checkpoint/",),
    "torch": (),
    # Reading one of these runs what its writer put in it.
    "pickle": (),
    "cloudpickle": (),
    "dill": (),
    "joblib": (),
    "marshal": (),
    "shelve": (),
}


@dataclasses.dataclass(frozen=True)
class Import:
    """One imported module: its full dotted name, its line, and whether it runs when the file is imported."""

    name: str
    line: int
    on_import: bool


def runs_later(node: ast.AST) -> bool:
    """Whether the code inside a node does not run when its file is imported."""
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test)
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def imports(tree: ast.Module, package: str) -> Iterator[Import]:
    """Every import in a file, lazy and relative ones included; `from a import b` is reported as `a.b`.

    Args:
      tree: the parsed file.
      package: the dotted name of the package that holds the file, against which relative imports are resolved.
    """

    def visit(node: ast.AST, on_import: bool) -> Iterator[Import]:
        on_import = on_import and not runs_later(node)
        match node:
            case ast.Import():
                for alias in node.names:
                    yield Import(alias.name, node.lineno, on_import)
            case ast.ImportFrom():
                parents = package.split(".")
                base = parents[: len(parents) - node.level + 1] if node.level else []
                for alias in node.names:
                    yield Import(".".join([*base, *filter(None, [node.module]), alias.name]), node.lineno, on_import)
            case ast.Call(args=[ast.Constant(value=str(name)), *_]) if "import_module" in ast.unparse(node.func):
                yield Import(name, node.lineno, on_import)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, on_import)

    yield from visit(tree, True)


def imports_of(path: pathlib.Path) -> list[Import]:
    package = ".".join(path.parent.relative_to(ROOT).parts)
    return list(imports(ast.parse(path.read_text()), package))


def part(path: pathlib.Path) -> str:
    """The part of the package a file belongs to: losses for losses/contrastive.py, step for step.py."""
    return path.relative_to(ROOT / "jaxclip").parts[0].removesuffix(".py")


def jaxclip_parts(found: Import) -> set[str]:
    names = found.name.split(".")
    return {names[1]} if names[0] == "jaxclip" and len(names) > 1 else set()


def place(path: pathlib.Path, line: int, what: str) -> str:
    return f"{path.relative_to(ROOT)}:{line}: {what}"


def test_the_walk_sees_lazy_relative_and_dynamic_imports():
    source = """
import os.path
from . import layers
from ..losses import contrastive
if TYPE_CHECKING:
    import torch
def read():
    import tensorflow as tf
    return importlib.import_module("clu.metric_writers")
"""
    assert [(found.name, found.on_import) for found in imports(ast.parse(source), "jaxclip.towers")] == [
        ("os.path", True),
        ("jaxclip.towers.layers", True),
        ("jaxclip.losses.contrastive", True),
        ("torch", False),
        ("tensorflow", False),
        ("clu.metric_writers", False),
    ]


def module_name(path: pathlib.Path) -> str:
    """The dotted name of a file; that of its folder for an __init__.py."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def import_graph(depth: int | None = None) -> dict[str, set[str]]:
    """Which module imports which, lazily or not.

    Args:
      depth: names are cut to so many parts, so that folders import folders; None for files.
    """
    modules = {module_name(path) for path in FILES}
    graph: dict[str, set[str]] = {}
    for path in FILES:
        importer = module_name(path)
        for found in imports_of(path):
            imported = found.name
            while imported and imported not in modules:
                imported = imported.rpartition(".")[0]
            first, second = (".".join(name.split(".")[:depth]) for name in (importer, imported))
            # A folder's __init__ imports its own modules, which is not a dependency between folders.
            inside = depth is not None and f"{first}.".startswith(f"{second}.") or f"{second}.".startswith(f"{first}.")
            if imported not in ("", "jaxclip") and first != second and not (depth and inside):
                graph.setdefault(first, set()).add(second)
    return graph


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """A circle of imports, empty if there is none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_a_circle_is_recognized():
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) in (["b", "c", "b"], ["c", "b", "c"])


def test_no_file_imports_itself_through_others():
    assert len(import_graph()) > 50
    assert not circle_in(import_graph())


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_folders_import_downwards_only(depth):
    assert not circle_in(import_graph(depth))


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_a_part_imports_nothing_above_it(name):
    allowed = MAY_IMPORT[name] | {name}
    wrong = [
        place(path, found.line, found.name)
        for path in FILES
        if part(path) == name
        for found in imports_of(path)
        if jaxclip_parts(found) - allowed
    ]
    assert not wrong, f"{name} may import only {sorted(allowed)} of jaxclip"


def test_only_main_imports_the_trainer():
    wrong = [
        place(path, found.line, found.name)
        for path in FILES
        if part(path) not in {"main", "train"}
        for found in imports_of(path)
        if jaxclip_parts(found) & {"main", "train"}
    ]
    assert not wrong


@pytest.mark.parametrize("package", ONLY_IN)
def test_a_package_is_imported_only_where_it_belongs(package):
    wrong = [
        place(path, found.line, found.name)
        for path in FILES
        if not path.relative_to(ROOT / "jaxclip").as_posix().startswith(ONLY_IN[package] or ("nowhere",))
        for found in imports_of(path)
        if found.name.split(".")[0] == package
    ]
    assert not wrong, f"{package} belongs in {ONLY_IN[package] or 'no file'}"


def test_tensorflow_is_imported_inside_functions():
    wrong = [
        place(path, found.line, found.name)
        for path in FILES
        for found in imports_of(path)
        if found.name.split(".")[0].startswith("tensorflow") and found.on_import
    ]
    assert not wrong


def unsafe_calls(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Calls that run text or unpack an archive somebody else wrote: (line, call)."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = ast.unparse(node.func)
        keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if (
            function in {"eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"}
            or function.endswith((".extractall", ".extract"))
            or keywords.get("shell", "False") != "False"
            or keywords.get("allow_pickle", "False") != "False"
        ):
            yield node.lineno, ast.unparse(node)


@pytest.mark.parametrize(
    "source",
    [
        "eval(text)",
        "exec(text)",
        "os.system(command)",
        "subprocess.run(command, shell=True)",
        "tarfile.open(path).extractall(folder)",
        "yaml.load(text)",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_an_unsafe_call_is_recognized(source):
    assert len(list(unsafe_calls(ast.parse(source)))) == 1


def test_no_file_runs_text_or_unpacks_archives():
    assert not [place(path, *call) for path in FILES for call in unsafe_calls(ast.parse(path.read_text()))]


def test_imported_packages_are_the_dependencies_in_pyproject():
    def normal(name: str) -> str:
        return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", name, maxsplit=1)[0]).lower()

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = {normal(requirement) for requirement in project["dependencies"]}
    owners = importlib.metadata.packages_distributions()
    missing = {
        place(path, found.line, found.name)
        for path in FILES
        for found in imports_of(path)
        if (top := found.name.split(".")[0]) not in sys.stdlib_module_names | {"jaxclip"}
        if not asked & {normal(owner) for owner in owners.get(top, [top])}
    }
    assert not missing


def part_exists(name: str) -> bool:
    return (ROOT / "jaxclip" / f"{name}.py").exists() or (ROOT / "jaxclip" / name / "__init__.py").exists()


def modules_loaded_by(*statements: str) -> set[str]:
    """The top-level names in sys.modules after the statements have run in a fresh interpreter."""
    program = "; ".join([*statements, "import sys", "print(*{name.split('.')[0] for name in sys.modules})"])
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    return set(ran.stdout.split())


def test_importing_jaxclip_loads_nothing_heavy():
    assert not modules_loaded_by("import jaxclip") & {"tensorflow", "clu", "orbax", "tokenizers"}


def test_the_step_and_the_losses_do_not_load_tensorflow():
    names = [name for name in ("losses", "methods", "step", "plan") if part_exists(name)]
    loaded = modules_loaded_by(*(f"import jaxclip.{name}" for name in names))
    assert "jax" in loaded
    assert not loaded & {"tensorflow", "clu", "orbax"}
