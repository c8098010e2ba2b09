"""Importing is free, and the arrows between modules point one way."""

import ast
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

import zoo

PACKAGE = Path(zoo.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
FLOORS = (
    (
        "errors",
        "files",
        "locks",
        "messages",
        "oddities",
        "progress",
        "settings",
        "siblings",
        "signals",
        "stopping",
        "version",
    ),
    ("entry", "formats", "images", "manifest", "policy", "record", "tensor_names"),
    ("fetching", "registry", "transforms"),
    ("checkpoint", "networks"),
    ("arguments", "features", "learning_rates", "licences", "loading", "locate", "provenance", "tables"),
    ("embedding", "selftest", "training"),
    ("evaluation", "tasks"),
    ("__main__", "cli", "commands", "entries", "examination"),
)
"""Modules and folders at the top of the package, the ground first: imports go down, or stay on their floor."""
DOORS = ("checkpoint", "embedding", "fetching", "formats", "images", "selftest", "transforms")
FOR_USERS = {
    "checkpoint": {"find_prefix", "strip_prefix", "rename_keys"},
    "embedding": {"Cases", "Embedder", "embed", "find_cases"},
}
CORE = [
    p
    for p in MODULES
    if p.relative_to(PACKAGE).parts[0] not in ("entries", "evaluation", "networks", "tasks", "training")
]


def name_of(path):
    """The dotted name of a module."""
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


NAMES = {name_of(path) for path in MODULES}


@cache
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
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names if names <= NAMES else names | {node.module}
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
        "import zoo.manifest, zoo.fetching, zoo.registry, zoo.loading, zoo.checkpoint, zoo.formats, zoo.locate",
    ],
)
def test_looking_around_loads_no_heavy_library(code):
    """Neither torch nor numpy, nor any network's library, nor the HTTP client."""
    heavy = ("torch", "numpy", "timm", "monai", "segmentation_models_pytorch", "safetensors", "requests", "PIL")
    assert run(code, *heavy) == []


@pytest.mark.slow
def test_a_run_that_classifies_imports_nothing_that_segments():
    """MONAI and pictures of masks take seconds, which a run that has none would wait for."""
    code = "from zoo.commands.finetuning import reader_of; reader_of('classify')"
    assert run(code, "monai", "zoo.tasks.segment") == []


def test_importing_the_package_loads_none_of_its_modules():
    """Public names are imported when they are used."""
    assert run("import zoo", "zoo.loading", "zoo.registry", "zoo.manifest", "zoo.errors") == []
    assert run("import zoo\nzoo.list_models", "zoo.registry", "zoo.loading") == ["zoo.registry"]


def test_listing_the_models_opens_no_room():
    """Entries take from the core what names tensors, and nothing that opens, fetches or fills."""
    assert run("import zoo\nzoo.list_models()", *(f"zoo.{room}" for room in DOORS)) == []


def rooms_of(module):
    """The top-level module or folder of the package that a module is, or lies in; `cli` of `zoo.cli`."""
    return module.split(".")[1]


def arrows(*, outside=()):
    """Every import of one module of the package by another, `(importer, imported)`, type-only ones too."""
    for path in MODULES:
        for name in imports(path):
            if name.startswith("zoo.") and (found := nearest(name)) not in (name_of(path), *outside):
                yield name_of(path), found


def nearest(name):
    """The module that an imported name is, or is defined in."""
    return name if name in NAMES else name.rpartition(".")[0]


def test_every_module_has_a_floor():
    """A new one at the top of the package, which no rule below would hold."""
    assert {rooms_of(name) for name in NAMES if name != "zoo"} == {room for floor in FLOORS for room in floor}


@pytest.mark.slow
def test_no_arrow_points_upward():
    """The ground imports nothing above it, the core neither training nor recipes, and so on, floor by floor."""
    height = {room: number for number, floor in enumerate(FLOORS) for room in floor}
    up = [(a, b) for a, b in arrows() if "zoo" not in (a, b) and height[rooms_of(a)] < height[rooms_of(b)]]
    assert not up


@pytest.mark.slow
def test_rooms_are_entered_by_their_doors():
    """What others need of a room its `__init__` offers; they import no module of it. Commands are each called alone."""
    past = [
        (a, b)
        for a, b in arrows()
        if rooms_of(f"{b}.") in DOORS and b.count(".") > 1 and (a == "zoo" or rooms_of(a) != rooms_of(b))
    ]
    assert not past


@pytest.mark.parametrize("room", DOORS)
def test_doors_offer_what_somebody_takes(room):
    """A name that nobody outside imports any more stays behind in `__all__`; those for users are named here."""
    offered = set(import_module(f"zoo.{room}").__all__)
    taken = {
        name.rpartition(".")[2]
        for path in [*MODULES, *(Path(__file__).parents[1] / "benchmarks").glob("*.py")]
        if f"/zoo/{room}/" not in str(path)
        for name in imports(path)
        if name.startswith(f"zoo.{room}.")
    }
    assert offered == (taken & offered) | FOR_USERS.get(room, set())


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("entries/*/__init__.py")), ids=lambda path: path.parent.name)
def test_entries_know_the_vocabulary_alone(path):
    """What an entry imports of the package: entry, errors, tensor names, its own network, renaming rules and sizes.

    What whole volumes are embedded and segmented with is imported only when they are.
    """
    own = f"zoo.entries.{path.parent.name}"
    embedding = tuple(f"{own}.{m}" for m in ("cubes", "inputs", "placing", "segment", "tiles", "windows"))
    allowed = (
        *("zoo.entry", "zoo.errors", "zoo.tensor_names"),
        *(f"{own}.{m}" for m in ("contract", "convert", "encoder", "model", "segmenters", "sizes")),
        *embedding,
    )
    assert not [module for module in imports(path, top_level=True) if module.startswith(embedding)]
    for module in imports(path):
        assert not module.startswith("zoo") or module.startswith(allowed), f"{path} imports {module}"


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.glob("entries/*/**/*.py")), ids=lambda path: "/".join(path.with_suffix("").parts[-2:])
)
def test_families_do_not_know_each_other(path):
    """A recipe imports its own family, the training code, and the core."""
    own = ".".join(name_of(path).split(".")[:3])
    for module in imports(path):
        assert not module.startswith("zoo.entries.") or module.startswith(own), f"{path} imports {module}"


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("training/*.py")), ids=lambda path: path.stem)
def test_training_does_not_know_the_methods(path):
    """The loop never knows a family's name."""
    assert not [module for module in imports(path) if module.startswith("zoo.entries")]


def test_there_is_no_import_cycle():
    """Counting imports inside functions and those for types alone; the package itself is what its users import."""
    edges = {name: set() for name in NAMES}
    for a, b in arrows(outside=("zoo",)):
        edges[a].add(b)
    state = {}

    def visit(name, trail):
        assert state.get(name) != "open", f"cycle: {' -> '.join((*trail, name))}"
        if name not in state:
            state[name] = "open"
            for other in edges[name]:
                visit(other, (*trail, name))
            state[name] = "done"

    for name in edges:
        visit(name, ())


@pytest.mark.slow
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
