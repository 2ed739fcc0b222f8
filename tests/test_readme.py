"""Every Python snippet of the README runs as written, and the commands it names exist."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from vit_explain import list_methods
from vit_explain.cli import app
from vit_explain.registry import by_family

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
]


@pytest.mark.parametrize("snippet", SNIPPETS, ids=[f"snippet {n}" for n in range(1, len(SNIPPETS) + 1)])
def test_snippet_runs(snippet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(ROOT / "examples" / "temple.jpg", tmp_path / "photo.jpg")
    (tmp_path / "photos" / "church").mkdir(parents=True)
    shutil.copy(ROOT / "examples" / "temple.jpg", tmp_path / "photos" / "church")
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "README.md", "exec"), {"__name__": "__readme__"})
    if ".save(" in snippet:
        assert (tmp_path / "out" / "manifest.json").is_file()


def test_there_are_snippets() -> None:
    assert len(SNIPPETS) >= 3


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("vit-explain ")])
def test_named_commands_and_flags_exist(line: str) -> None:
    import typer.main

    words = shlex.split(line.split(">")[0])
    command = typer.main.get_command(app).commands[words[1]]  # type: ignore[attr-defined]
    flags = {flag for parameter in command.params for flag in parameter.opts}
    assert {word for word in words[2:] if word.startswith("-")} <= flags


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("make ")])
def test_named_make_targets_exist(line: str) -> None:
    assert re.search(rf"^{line.split()[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def test_the_opening_names_the_two_commands() -> None:
    opening = README.split("## Install")[0]
    assert opening.index("make demo") < opening.index("make test") < README.index("pip install vit-explain")


def test_links_into_the_repository_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert "://" in target or (ROOT / target).exists(), target


def test_every_method_is_listed_in_its_family() -> None:
    section = README.split("\n## Methods\n")[1].split("\n## ")[0]
    listed = {
        family: set(re.findall(r"`(\w+)`", names))
        for family, names in re.findall(r"^- \*\*(.+?)\*\*: (.*?)(?=^- |\n\n)", section, re.DOTALL | re.MULTILINE)
    }
    assert listed == {family: {one.name for one in found} for family, found in by_family(list_methods())}
