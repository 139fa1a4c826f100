"""Consistency of the README and the docs with files, modules, flags and targets."""

import re
import shlex
import subprocess
import sys

import pytest
from paths import ROOT

PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "launch/README.md"]
PAGES += sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text()):
        if not target.startswith("http"):
            assert ((ROOT / page).parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES)
def test_recipes_and_modules_that_are_named_exist(page):
    text = (ROOT / page).read_text()
    for recipe in re.findall(r"configs/\w+\.py", text):
        assert (ROOT / recipe).exists(), recipe
    for module in re.findall(r"-m (jaxclip[.\w]*\w)", text):
        path = ROOT.joinpath(*module.split("."))
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def test_flags_and_keys_of_the_commands_exist():
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    from configs import vit_b16
    from jaxclip.parsing import flatten

    keys = set(flatten(vit_b16.get_config().to_dict())) | {"evals"}
    named = [word for line in re.findall(r"-m jaxclip\.main (.*)", text) for word in shlex.split(line)]
    assert named
    for word in named:
        flag = word.split("=")[0]
        assert flag in ("--config", "--workdir", "\\") or flag.removeprefix("--config.") in keys, word


def test_flags_of_plan_that_are_named_exist():
    text = "".join((ROOT / page).read_text() for page in PAGES).replace("\\\n", " ")
    defined = set(re.findall(r'flags\.DEFINE_\w+\(\s*"(\w+)"', (ROOT / "jaxclip/plan/__main__.py").read_text()))
    named = {flag for line in re.findall(r"-m jaxclip\.plan (.*)", text) for flag in re.findall(r"--(\w+)", line)}
    assert {"topology", "search"} <= named - {"config"} <= defined


def test_make_targets_that_are_named_exist():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for page in PAGES:
        for target in re.findall(r"^make ([\w-]+)|`make ([\w-]+)`", (ROOT / page).read_text(), re.MULTILINE):
            assert "".join(target) in targets, target


def test_evaluate_has_a_usage_message():
    run = subprocess.run([sys.executable, "-m", "jaxclip.evaluate", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0
    for flag in ("--data", "--classes", "--template"):
        assert flag in run.stdout
