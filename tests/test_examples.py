"""The examples, as their page has them typed, with few and hardly trained models."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from commands import run

EXAMPLES = Path(__file__).parents[1] / "examples"
FEW = {"MODELS": "4", "EPOCHS": "1", "RECORDS": "120", "ASKED": "40", "FASHION": "nowhere"}
PAGE = (EXAMPLES / "README.md").read_text()
SCRIPT = "import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
SECTIONS = re.findall(r"^## (\w+)\n\n```bash\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("name", "typed"), SECTIONS, ids=[name for name, _ in SECTIONS])
def test_an_example_as_it_is_typed(tmp_path, name, typed):
    shutil.copytree(EXAMPLES / name, tmp_path / name)
    for line in typed.splitlines():
        program, *words = shlex.split(line)
        assert program == "python"
        if words[0] == "-m":
            module, *arguments = words[1:]
            if module == "mico_exp":
                arguments.append("plots=off")
            if module == "mico_exp.shadow":
                arguments += ["models=3", "dataset.recipe.epochs=1"]
            shown = run(module, *arguments, cwd=tmp_path / name).stdout
        else:
            run("-c", SCRIPT, *words, cwd=tmp_path / name, **FEW)
    assert "reports" in shown
    (page,) = (tmp_path / name / "reports").glob("*.html")
    assert f"{name}_inf" in page.read_text()


def test_the_page_tells_how_long_options_are():
    """Lines of YAML in the table are those of the files."""
    told = dict(re.findall(r"^\| \[(\w+)\].*\| (\d+) \|$", PAGE, re.MULTILINE))
    assert told.keys() == {path.name for path in EXAMPLES.iterdir() if path.is_dir()} - {"real"}
    for name, lines in told.items():
        (option,) = (EXAMPLES / name / "options" / "dataset").glob("*.yaml")
        assert len(option.read_text().splitlines()) == int(lines), name
