"""Files of the project that say the same thing, and what is handed to users."""

import ast
import fnmatch
import os
import re
import shutil
import subprocess
import sys
import tarfile
import textwrap
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from test_layers import LAYERS

ROOT = Path(__file__).parents[1]


def text_of(name):
    return (ROOT / name).read_text(encoding="utf-8")


def setup_arguments():
    (call,) = (
        node
        for node in ast.walk(ast.parse(text_of("setup.py")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setup"
    )
    wanted = {"install_requires", "extras_require"}
    return {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg in wanted}


def requirements():
    """Every direct dependency by group; what a group takes from another is left out."""
    arguments = setup_arguments()
    groups = {"install": arguments["install_requires"], **arguments["extras_require"]}
    return {
        group: [
            requirement
            for requirement in map(Requirement, lines)
            if requirement.name != "skbdistil"
        ]
        for group, lines in groups.items()
    }


def pins(name):
    """Versions by package of a file in which each line pins one."""
    lines = text_of(name).splitlines()
    found = {}
    for line in lines:
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            (specifier,) = requirement.specifier
            assert specifier.operator == "=="
            assert requirement.name not in found
            found[requirement.name] = specifier.version
    return found


def test_constraints_pin_every_direct_dependency():
    pinned = pins("constraints.txt")
    required = [item for group in requirements().values() for item in group]
    assert pinned.keys() == {requirement.name for requirement in required}
    for requirement in required:
        assert requirement.specifier.contains(pinned[requirement.name])


def test_floors_are_the_lower_bounds_of_setup():
    bounds = {}
    for group in ("install", "deploy", "examples", "test"):
        for requirement in requirements()[group]:
            (specifier,) = requirement.specifier
            assert specifier.operator == ">="
            bounds[requirement.name] = specifier.version
    assert pins("floors.txt") == bounds


def test_oldest_setuptools_builds_the_package():
    assert f"setuptools>={pins('floors.txt')['setuptools']}" in text_of(
        "pyproject.toml"
    )


def test_pre_commit_runs_the_pinned_versions():
    pinned = pins("constraints.txt")
    (local,) = yaml.safe_load(text_of(".pre-commit-config.yaml"))["repos"]
    hooks = {hook["id"]: hook for hook in local["hooks"]}
    assert hooks.keys() == {"ruff", "ruff-format", "codespell"}
    for hook in hooks.values():
        tool = hook["entry"].split()[0]
        assert hook["additional_dependencies"][0] == f"{tool}=={pinned[tool]}"


def ci_steps():
    script = text_of(".ci/run")
    return set(re.findall(r"^step_(\w+)\(\)", script, flags=re.MULTILINE))


def test_ci_describes_each_of_its_steps():
    head = text_of(".ci/run").partition("set -euo")[0]
    described = re.findall(r"^#   (\w+)  ", head, flags=re.MULTILINE)
    assert set(described) == ci_steps()


def test_workflow_calls_ci_on_every_system():
    (job,) = yaml.safe_load(text_of(".github/workflows/ci.yml"))["jobs"].values()
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands == ["bash .ci/run ${{ matrix.steps }}"]
    runs = job["strategy"]["matrix"]["include"]
    assert {step for run in runs for step in run["steps"].split()} <= ci_steps()
    # Where no step is named, all of them run: once with the oldest Python, whose floors
    # these are, and once with the newest, but for the floors.
    complete = {(run["os"], run["python"]) for run in runs if not run["steps"]}
    assert complete == {("ubuntu-latest", "3.10")}
    (newest,) = (
        set(run["steps"].split())
        for run in runs
        if (run["os"], run["python"]) == ("ubuntu-latest", "3.13")
        and run["steps"] != "newest"
    )
    assert newest == ci_steps() - {"oldest", "newest"}
    systems = {run["os"].partition("-")[0] for run in runs}
    assert systems == {"ubuntu", "macos", "windows"}


def test_workflow_has_the_oldest_and_newest_python_of_setup():
    named = re.findall(r"Python :: (3\.\d+)", text_of("setup.py"))
    (job,) = yaml.safe_load(text_of(".github/workflows/ci.yml"))["jobs"].values()
    runs = {run["python"] for run in job["strategy"]["matrix"]["include"]}
    assert runs == {named[0], named[-1]}


def layers_block():
    """The table of layers as CONTRIBUTING.rst shows it."""
    lines = []
    for module, below in LAYERS.items():
        imports = textwrap.wrap(", ".join(sorted(below)) or "-", 54)
        names = [module, *[""] * (len(imports) - 1)]
        for name, part in zip(names, imports, strict=True):
            lines.append(f"   {name:28}  {part}")
    return "\n".join([".. layers", "", ".. code-block:: text", "", *lines, ""])


def test_contributing_shows_the_layers():
    block = layers_block()
    assert block in text_of("CONTRIBUTING.rst"), (
        f"CONTRIBUTING.rst should have this block:\n\n{block}"
    )


def test_readme_of_benchmarks_describes_each_script():
    scripts = {path.stem for path in ROOT.glob("benchmarks/bench_*.py")}
    text = text_of("benchmarks/README.rst")
    described = re.findall(r"^``.*-m benchmarks\.(\w+)", text, re.MULTILINE)
    assert scripts
    assert not scripts - set(described)


def ignored(folder, names):
    """Those of the names in a folder that .gitignore lists, for shutil.copytree."""
    patterns = [".git", *text_of(".gitignore").split()]
    inside = Path(folder).relative_to(ROOT)

    def is_ignored(name):
        path = (inside / name).as_posix()
        return any(
            fnmatch.fnmatch(path if "/" in pattern.rstrip("/") else name, wanted)
            for pattern in patterns
            for wanted in [pattern.strip("/")]
        )

    return {name for name in names if is_ignored(name)}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A copy of the checkout, and the wheel and the sdist that were built from it."""
    folder = tmp_path_factory.mktemp("built")
    source, archives = folder / "source", folder / "archives"
    shutil.copytree(ROOT, source, ignore=ignored)
    files = {p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file()}
    build = (
        "import sys; from setuptools import build_meta as backend; "
        "folder = sys.argv[1]; backend.build_sdist(folder); backend.build_wheel(folder)"
    )
    subprocess.run(
        [sys.executable, "-c", build, archives],
        cwd=source,
        check=True,
        capture_output=True,
    )
    (wheel,), (sdist,) = archives.glob("*.whl"), archives.glob("*.tar.gz")
    return files, wheel, sdist


def test_sdist_holds_the_checkout(built):
    files, _, sdist = built
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    missing = sorted(files - names)
    assert not missing, f"neither MANIFEST.in nor .gitignore lists {missing}"


def test_wheel_holds_the_package_and_nothing_else(built):
    files, wheel, _ = built
    package = {name for name in files if name.startswith("skbdistil/")}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == package


def test_installed_wheel_imports_every_module(built, tmp_path):
    files, wheel, _ = built
    venv.create(tmp_path / "environment")
    (site,) = (tmp_path / "environment").rglob("site-packages")
    # A wheel without scripts is installed when it is unpacked.
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # The dependencies of the environment that runs the tests. An editable install of
    # the checkout is not among them: .pth files work in site-packages only.
    dependencies = [path for path in sys.path if path.endswith("site-packages")]
    (site / "dependencies.pth").write_text("\n".join(dependencies), encoding="utf-8")
    modules = sorted(
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in files
        if name.startswith("skbdistil/") and name.endswith(".py")
    )
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    print(importlib.import_module(name).__file__)\n"
    )
    bin = "Scripts" if os.name == "nt" else "bin"
    python = tmp_path / "environment" / bin / "python"
    completed = subprocess.run(
        [python, "-I", "-c", code, *modules],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    found = completed.stdout.splitlines()
    assert len(found) == len(modules) > 20
    assert all(Path(file).is_relative_to(site) for file in found)
