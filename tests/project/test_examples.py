"""The runnable examples in docstrings: their results, and their presence in every public function of some packages."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType

import commands
import pytest

import jaxclip

PACKAGES = ["jaxclip.losses"]
# And those of which not all functions have one.
OTHERS = ["jaxclip.towers", "jaxclip.upgrade", "jaxclip.schedule", "jaxclip.inputs"]


def modules_of(package: ModuleType) -> Iterator[ModuleType]:
    """A package and all modules below it."""
    yield package
    for info in pkgutil.walk_packages(getattr(package, "__path__", []), f"{package.__name__}."):
        yield importlib.import_module(info.name)


def failures_of(test: doctest.DocTest) -> str:
    """What doctest reports of an example that is not true; empty if it is."""
    reports: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=reports.append)
    return "".join(reports)


def test_a_false_example_is_recognized():
    parse = doctest.DocTestParser().get_doctest
    assert not failures_of(parse(">>> 1 + 1\n2\n", {}, "right", None, None))
    assert "Expected:\n    3" in failures_of(parse(">>> 1 + 1\n3\n", {}, "wrong", None, None))


@pytest.mark.parametrize("name", [*PACKAGES, *OTHERS])
def test_examples_in_docstrings_are_true(name):
    finder = doctest.DocTestFinder(exclude_empty=True)
    tests = [test for module in modules_of(importlib.import_module(name)) for test in finder.find(module)]
    examples = [test for test in tests if test.examples]
    assert examples, f"{name} has no example"
    for test in examples:
        assert not failures_of(test)


@pytest.mark.parametrize("name", PACKAGES)
def test_every_public_function_and_class_has_an_example(name):
    package = importlib.import_module(name)
    public = {export: getattr(package, export) for export in dir(package) if not export.startswith("_")}
    documented = {export: item for export, item in public.items() if inspect.isfunction(item) or inspect.isclass(item)}
    assert documented
    assert not [export for export, item in documented.items() if ">>>" not in (inspect.getdoc(item) or "")]


def test_the_examples_of_a_trained_model_are_true(tmp_path):
    ran = commands.run([f"--config={commands.recipe(tmp_path)}", f"--workdir={tmp_path}/run"], commands.environment())
    assert ran.status == 0, ran.stderr
    module = importlib.import_module("jaxclip.model")
    found = doctest.DocTestFinder(exclude_empty=True).find(module)
    examples = {test.name: test for test in found if test.examples}
    assert "jaxclip.model.load" in examples
    for test in examples.values():
        test.globs |= {"jaxclip": jaxclip, "workdir": tmp_path / "run"}
        assert not failures_of(test)
