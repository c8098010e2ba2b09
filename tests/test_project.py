"""What stands around the package agrees with it: pins, workflows, hooks, image, citation, index for language models."""

import fnmatch
import importlib.util
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import zoo

CHECKOUT = Path(__file__).parents[1]
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text("utf-8"))["project"]
WORKFLOWS = sorted((CHECKOUT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (CHECKOUT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config")


def read_yaml(path):
    return yaml.safe_load(path.read_text("utf-8"))


def script(name):
    spec = importlib.util.spec_from_file_location(name, CHECKOUT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_oldest_pins_are_the_floors():
    """`python scripts/oldest_pins.py` writes them; each is of a requirement, and what the core needs is there."""
    oldest_pins = script("oldest_pins")
    assert oldest_pins.OLDEST.read_text("utf-8") == oldest_pins.oldest()
    pins = dict(re.findall(r"^([\w-]+)==([\d.]+)$", oldest_pins.oldest(), re.MULTILINE))
    for requirement in map(Requirement, PROJECT["dependencies"]):
        assert pins[requirement.name] in requirement.specifier
    assert pins.keys() > {"torch", "ray", "onnx", "scikit-learn", "pytest"}


def test_every_dependency_of_the_core_has_a_floor():
    """One without would be tested with its newest release alone."""
    assert [text for text in PROJECT["dependencies"] if not Requirement(text).specifier] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_what_is_there(path):
    """Each job ends, may not write unless it says so, and names files of the checkout that exist."""
    workflow = read_yaml(path)
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 90
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step)
            for file in re.findall(r"-c (\S+\.txt)|(\.ci/\w+)", step.get("run", "")):
                assert (CHECKOUT / "".join(file)).is_file()


@pytest.mark.parametrize("path", [".github/workflows/tests.yml", ".github/workflows/docs.yml", "Dockerfile"])
def test_extras_that_are_installed_exist(path):
    """Pip installs the package without one that it does not know, and only warns."""
    found = re.findall(r"(?:\.|\})\[([a-z,]+)\]", (CHECKOUT / path).read_text("utf-8"))
    assert found
    assert {extra for each in found for extra in each.split(",")} <= PROJECT["optional-dependencies"].keys()


def test_the_oldest_releases_run_on_the_oldest_python():
    """And every Python that is tested may install the package."""
    jobs = read_yaml(CHECKOUT / ".github" / "workflows" / "tests.yml")["jobs"]["tests"]["strategy"]["matrix"]["include"]
    supported = SpecifierSet(PROJECT["requires-python"])
    assert all(job["python"] in supported for job in jobs)
    oldest = [job["python"] for job in jobs if job["pins"] == "oldest"]
    assert [f">={python}" for python in oldest] == [PROJECT["requires-python"]]
    assert {job["python"] for job in jobs if job["pins"] == "newest"} == {"3.11", "3.12", "3.13"}


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_is_one(path):
    """A form that GitHub refuses is shown to nobody: names, a body, and no two answers of one name."""
    form = read_yaml(path)
    assert form["name"]
    assert form["description"]
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert {field["type"] for field in fields} <= {"input", "textarea", "checkboxes", "dropdown"}
    assert len({field["id"] for field in fields}) == len(fields)
    assert all(field["attributes"]["label"] for field in fields)


def test_hooks_are_pinned():
    """So that a commit passes on every machine or on none; mypy reads the libraries that are installed."""
    (repository,) = read_yaml(CHECKOUT / ".pre-commit-config.yaml")["repos"]
    for hook in repository["hooks"]:
        pinned = [text for text in hook.get("additional_dependencies", []) if "==" in text]
        assert len(pinned) == (hook["language"] == "python"), hook["id"]


def test_the_citation_is_of_this_version():
    """Its version and licence are those of the package."""
    citation = read_yaml(CHECKOUT / "CITATION.cff")
    assert str(citation["version"]) == zoo.__version__
    assert citation["license"] == PROJECT["license"]
    assert citation.keys() >= {"cff-version", "message", "title", "authors"}


def test_the_index_for_language_models_names_every_card():
    """By its own first line, and nothing that is not there."""
    links = dict(re.findall(r"^- \[(.+)\]\(([^)]+)\)", (CHECKOUT / "llms.txt").read_text("utf-8"), re.MULTILINE))
    cards = sorted((CHECKOUT / "zoo" / "entries").glob("*/README.md"))
    titles = {card.read_text("utf-8").splitlines()[0].removeprefix("# "): card for card in cards}
    assert {title: CHECKOUT / links[title] for title in titles} == titles
    assert all((CHECKOUT / path).is_file() for path in links.values())


def test_the_image_is_built_of_what_the_build_reads():
    """`.dockerignore` leaves all out but what it names: what is not in its list is not in the image."""
    lines = (CHECKOUT / ".dockerignore").read_text("utf-8").splitlines()
    kept = [line.removeprefix("!") for line in lines if line.startswith("!")]
    read = [
        "zoo",
        "pyproject.toml",
        "setup.py",
        script_constant("MANIFEST"),
        PROJECT["readme"],
        *PROJECT["license-files"],
    ]
    assert [name for name in read if not any(fnmatch.fnmatch(name, pattern) for pattern in kept)] == []
    assert all((CHECKOUT / name).exists() for name in kept)


def script_constant(name):
    """A text that setup.py gives a name; to import it is to build."""
    return re.search(rf'^{name} = "(.+)"$', (CHECKOUT / "setup.py").read_text("utf-8"), re.MULTILINE).group(1)
