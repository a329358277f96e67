"""What a user meets before the first fit: imports, installation, README."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from pkgutil import iter_modules

import pytest

import skbdistil

ROOT = Path(__file__).parents[1]
PACKAGE = Path(skbdistil.__file__).parent


def run_python(code):
    completed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return json.loads(completed.stdout)


@pytest.mark.parametrize("module", ["skbdistil", "skbdistil.exceptions"])
def test_import_is_light(module):
    loaded = run_python(
        f"import json, sys, {module}\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    assert not {"torch", "skorch", "sklearn", "scipy", "numpy"} & set(loaded)


def test_metrics_need_numpy_only():
    loaded = run_python(
        "import json, sys, skbdistil.metrics\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    assert not {"torch", "skorch", "sklearn", "scipy"} & set(loaded)


def test_every_public_name_resolves_in_a_fresh_process():
    # One process for all of them: each import of torch takes seconds.
    resolved = run_python(
        "import json, skbdistil\n"
        "names = [name for name in skbdistil.__all__ if hasattr(skbdistil, name)]\n"
        "print(json.dumps(names))"
    )
    assert resolved == skbdistil.__all__


@pytest.mark.parametrize("name", skbdistil.__all__)
def test_public_name_is_what_it_says(name):
    value = getattr(skbdistil, name)
    assert value.__name__ in {name, f"skbdistil.{name}"}
    assert value.__doc__
    assert getattr(skbdistil, name) is value


def test_every_public_module_is_an_attribute():
    modules = {module.name for module in iter_modules([PACKAGE])}
    public = {name for name in modules if not name.startswith("_")}
    assert public <= set(skbdistil.__all__)


def test_dir_lists_the_public_names():
    assert {"__version__", *skbdistil.__all__} <= set(dir(skbdistil))


def test_unknown_attribute():
    with pytest.raises(AttributeError, match=r"'skbdistil' has no attribute 'nothing'"):
        _ = skbdistil.nothing


@pytest.mark.parametrize(
    "path",
    sorted(PACKAGE.rglob("*.py")),
    ids=lambda path: path.relative_to(PACKAGE).as_posix(),
)
def test_nothing_is_printed(path):
    calls = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ]
    assert not calls, f"print() in line(s) {calls}"


def readme_commands():
    text = (ROOT / "README.rst").read_text(encoding="utf-8")
    block = r"^\.\. run: (\w+)\n\n\.\. code-block:: bash\n\n   (\S.*)\n\n"
    return dict(re.findall(block, text, flags=re.MULTILINE))


def test_readme_has_the_two_commands():
    assert set(readme_commands()) == {"quickstart", "tests"}


@pytest.mark.parametrize("command", readme_commands().values())
def test_readme_commands_are_constrained(command):
    assert command.startswith("python -m pip install -c constraints.txt ")


def test_ci_finds_the_readme_commands():
    # The same awk program that .ci/run uses.
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    function = re.search(r"^command_of\(\) \{.*?^\}", script, re.MULTILINE | re.DOTALL)
    for name, command in readme_commands().items():
        completed = subprocess.run(
            ["bash", "-c", f"{function[0]}\ncommand_of {name}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert completed.stdout == f"{command}\n"


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(PACKAGE.glob("*.py")) if not path.name.startswith("_")],
    ids=lambda path: path.stem,
)
def test_names_of_a_public_module_are_public_or_begin_with_an_underscore(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    names |= {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    public = {name for name in names if not name.startswith("_")}
    module = getattr(skbdistil, path.stem)
    assert public <= set(module.__all__)
