"""No import leads back to where it began: not among the modules of a folder, and not among the folders."""

import ast
from pathlib import Path

import pytest
from conftest import ROOT

FOLDERS = ("models", "distiller_zoo", "crd", "dataset", "helper")
ALLOWED = {
    "models": set(),
    "dataset": {"models"},
    "helper": {"dataset", "models"},
    "distiller_zoo": {"dataset", "models", "helper"},
    "crd": {"dataset", "models", "distiller_zoo"},
}
Graph = dict[str, set[str]]


def module_name(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def imports(root: Path) -> Graph:
    """What each module of the folders imports of them, also inside functions and for type checking."""
    paths = {module_name(path, root): path for folder in FOLDERS for path in sorted((root / folder).rglob("*.py"))}
    graph = {name: set() for name in paths}
    for name, path in paths.items():
        package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                above = package[: len(package) - node.level + 1] if node.level else []
                source = ".".join([*above, node.module] if node.module else above)
                # `from package import name`: the module of that name, else what the package itself defines
                found = [f"{source}.{alias.name}" for alias in node.names]
                found = [each if each in paths else source for each in found]
            else:
                continue
            graph[name] |= {each for each in found if each in paths} - {name}
    return graph


def circle(graph: Graph) -> list[str]:
    """The modules of an import circle, the first one again at its end; [] where there is none."""
    done = set()

    def follow(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name not in done:
            for other in sorted(graph[name]):
                if found := follow(other, [*way, name]):
                    return found
            done.add(name)
        return []

    return next(filter(None, (follow(name, []) for name in sorted(graph))), [])


def between_folders(graph: Graph) -> Graph:
    found = {folder: set() for folder in FOLDERS}
    for name, others in graph.items():
        found[name.split(".")[0]] |= {other.split(".")[0] for other in others}
    return {folder: others - {folder} for folder, others in found.items()}


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_circle_between_the_modules_of_a_folder(folder):
    graph = imports(ROOT)
    inside = {name: others for name, others in graph.items() if name.split(".")[0] == folder}
    found = circle({name: others & inside.keys() for name, others in inside.items()})
    assert not found, "import circle: " + " > ".join(found)


def test_no_circle_at_all():
    graph = imports(ROOT)
    found = circle(graph) or circle(between_folders(graph))
    assert not found, "import circle: " + " > ".join(found)


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_import_those_below_them(folder):
    wrong = [
        f"{name} imports {other}"
        for name, others in imports(ROOT).items()
        for other in sorted(others)
        if name.split(".")[0] == folder and other.split(".")[0] not in {folder, *ALLOWED[folder]}
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"dataset/a.py": "from . import b", "dataset/b.py": "def f():\n    from .a import x"}, "dataset.a dataset.b"),
        ({"helper/a.py": "from helper.b import x", "helper/b.py": "import helper.a"}, "helper.a helper.b"),
        ({"dataset/a.py": "import helper.b", "helper/b.py": "from dataset import a"}, "dataset.a helper.b"),
        ({"crd/__init__.py": "from .a import X\nfrom . import b", "crd/a.py": "from . import b", "crd/b.py": ""}, ""),
        ({"crd/__init__.py": "from .a import X", "crd/a.py": "from . import X"}, "crd crd.a"),
        (
            {"dataset/a.py": "if TYPE_CHECKING:\n    from .b import X", "dataset/b.py": "from .a import x"},
            "dataset.a dataset.b",
        ),
        ({"models/a.py": "import dataset, torch", "dataset/__init__.py": "from models.a import x"}, "dataset models.a"),
    ],
)
def test_circles_are_found(files, expected, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert circle(imports(tmp_path))[:-1] == expected.split()
