"""The documents are true where a machine can tell."""

import re
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[1]


def resolve(name: str) -> object:
    module, _, path = name.partition(":")
    found: object = import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found


def test_every_function_that_the_architecture_names_exists():
    names = re.findall(r"`(holdfast\.[\w.]+:[\w.]+)`", (ROOT / "docs/architecture.md").read_text())
    assert len(names) > 20
    for name in names:
        assert callable(resolve(name)), name


def test_every_file_that_the_architecture_names_exists():
    names = re.findall(r"`((?:\w+/)*\w+\.py)`", (ROOT / "docs/architecture.md").read_text())
    assert len(names) > 8
    for name in names:
        assert (ROOT / "src/holdfast" / name).is_file(), name


def test_links_between_documents_lead_somewhere():
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md"), ROOT / "bench/README.md"]
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} -> {target}"


def test_every_command_is_in_the_readme_and_has_a_module():
    from holdfast.cli.commands import COMMANDS, load_command

    text = (ROOT / "README.md").read_text()
    for name in COMMANDS:
        assert load_command(name) is not None
        assert f"`{name}`" in text or f"holdfast {name}" in text, name


def test_every_direct_dependency_is_pinned_and_explained():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    wanted = [*project["project"]["dependencies"], *(name for extra in extras.values() for name in extra)]
    pinned = (ROOT / "constraints.txt").read_text().lower().replace("_", "-")
    explained = (ROOT / "docs/dependencies.md").read_text().lower()
    for requirement in wanted:
        name = re.split(r"[<>=\[ ]", requirement)[0]
        assert f"\n{name}==".lower() in pinned, name
        assert name in explained, name
