"""Importing is free, and the arrows between modules point one way."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import zoo

PACKAGE = Path(zoo.__file__).parent
CORE = sorted(PACKAGE.glob("*.py"))
RECIPES = ("method", "data", "pretrain", "finetune")


def imports(path, *, top_level=False):
    """Modules that a file imports: all of them, or those that importing the file itself imports."""
    found = set()
    tree = ast.parse(path.read_text("utf-8"))
    pending = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif top_level and (
            isinstance(node, ast.FunctionDef) or "TYPE_CHECKING" in ast.unparse(getattr(node, "test", node))
        ):
            continue
        pending += list(ast.iter_child_nodes(node))
    return found


def run(code, *unwanted):
    """Run code in a new process and return which of the modules it loaded."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*[m for m in {unwanted} if m in sys.modules])"],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
    )
    return done.stdout.split("\n")[-2].split()


@pytest.mark.parametrize(
    "code",
    [
        "import zoo; dir(zoo)",
        "import zoo; zoo.list_models(); zoo.model_info('caid-resnet50'); zoo.model_info('caid-resnet50.chestxray14')",
        "import zoo.manifest, zoo.cache, zoo.download, zoo.registry, zoo.loading, zoo.report, zoo.inspection",
    ],
)
def test_looking_around_loads_no_heavy_library(code):
    """Neither torch nor numpy, nor any network's library, nor the HTTP client."""
    heavy = ("torch", "numpy", "timm", "monai", "segmentation_models_pytorch", "safetensors", "requests", "PIL")
    assert run(code, *heavy) == []


def test_importing_the_package_loads_none_of_its_modules():
    """Public names are imported when they are used."""
    assert run("import zoo", "zoo.loading", "zoo.registry", "zoo.manifest", "zoo.errors") == []
    assert run("import zoo\nzoo.list_models", "zoo.registry", "zoo.loading") == ["zoo.registry"]


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.stem)
def test_the_core_knows_neither_training_nor_recipes(path):
    """Only the registry knows families at all, by name."""
    for module in imports(path):
        assert not module.startswith(("zoo.training", "zoo.entries")), f"{path.name} imports {module}"


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("entries/*/__init__.py")), ids=lambda path: path.parent.name)
def test_entries_know_the_vocabulary_alone(path):
    """What an entry imports of the package: entry, checkpoint, errors, its own network, names and sizes.

    What whole volumes are embedded with is imported only when they are.
    """
    own = f"zoo.entries.{path.parent.name}"
    embedding = tuple(f"{own}.{m}" for m in ("embed", "placing", "windows"))
    allowed = (
        *("zoo.entry", "zoo.checkpoint", "zoo.errors"),
        *(f"{own}.{m}" for m in ("model", "names", "segmenters", "sizes")),
        *embedding,
    )
    assert not [module for module in imports(path, top_level=True) if module.startswith(embedding)]
    for module in imports(path):
        assert not module.startswith("zoo") or module.startswith(allowed), f"{path} imports {module}"


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.glob("entries/*/*.py")), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_families_do_not_know_each_other(path):
    """A recipe imports its own family, the training code, and the core."""
    own = f"zoo.entries.{path.parent.name}"
    for module in imports(path):
        assert not module.startswith("zoo.entries.") or module.startswith(own), f"{path} imports {module}"


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("training/*.py")), ids=lambda path: path.stem)
def test_training_does_not_know_the_methods(path):
    """The loop never knows a family's name."""
    assert not [module for module in imports(path) if module.startswith("zoo.entries")]


def test_the_core_has_no_import_cycle():
    """Counting only what importing a module imports."""
    edges = {f"zoo.{p.stem}": {m for m in imports(p, top_level=True) if m.startswith("zoo.")} for p in CORE}
    state = {}

    def visit(name, trail):
        assert state.get(name) != "open", f"cycle: {' -> '.join((*trail, name))}"
        if name in edges and name not in state:
            state[name] = "open"
            for other in edges[name]:
                visit(other, (*trail, name))
            state[name] = "done"

    for name in edges:
        visit(name, ())
    assert len(state) == len(edges)


def test_nothing_of_torch_is_imported_at_top_level_by_the_core():
    """Read from the files, so that it holds for modules that no other test imports."""
    allowed = {"demo.py", "phantom.py"}  # imported by their own command alone
    for path in CORE:
        heavy = {m.split(".")[0] for m in imports(path, top_level=True)} & {
            "torch",
            "numpy",
            "timm",
            "monai",
            "requests",
        }
        assert not heavy or path.name in allowed, f"{path.name} imports {heavy}"


def test_errors_are_there_after_the_first_import():
    """`except zoo.errors.ZooError` works as a program's first statement."""
    code = "import zoo, sys; zoo.errors.UnknownModelError; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
