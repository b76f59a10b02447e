"""The house style, measured: imports run downward, files and functions are short, annotated and documented."""

import ast
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "foreword"
FILES = sorted(PACKAGE.rglob("*.py"))
VERBS = ("train", "generate", "evaluate")

# The order of the flow, from what everything may import to what nothing may import (docs/ARCHITECTURE.md says why).
# A module belongs to the longest entry that is its own name or a package above it.
ORDER = (
    "foreword",  # the face: only names and a version, so that anybody may read the version
    "foreword.errors",
    "foreword.shapes",
    "foreword.config",
    "foreword.data",
    "foreword.tasks",
    "foreword.prompts.spec",
    "foreword.prompts.tables",
    "foreword.prompts.bank",
    "foreword.prompts.attention",
    "foreword.prompts.inject",
    "foreword.frozen",
    "foreword.geometry",
    "foreword.backbone",
    "foreword.prompts",
    "foreword.artifact",
    "foreword.train.loss",
    "foreword.baselines",
    "foreword.train",
    "foreword.generate",
    "foreword.doctor",
    "foreword.evaluate",
    "foreword.compose",
    "foreword.inspect",
    "foreword.experiments",
    "foreword.pretrain",
    "foreword.serve",
    "foreword.engines",
    "foreword.demo",
    "foreword.cli",
    "foreword.__main__",
)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def rank(module: str) -> int:
    entries = [entry for entry in ORDER[1:] if module == entry or module.startswith(entry + ".")]
    return ORDER.index(max(entries, key=len)) if entries else ORDER.index("foreword")


def imports(tree: ast.Module) -> Iterator[str]:
    """Modules of the package that a module imports, at the top or inside functions, but not for annotations alone."""
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "foreword":
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in TREES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "foreword")


GRAPH = {module: set(imports(tree)) - {module} for module, tree in TREES.items()}


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function's body without its docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def test_imports_run_downward():
    upward = [f"{m} imports {i}" for m, found in GRAPH.items() for i in found if rank(i) > rank(m) and m != "foreword"]
    assert not upward
    assert sum(map(len, GRAPH.values())) > 100  # the walk sees the imports


def test_no_module_is_in_a_cycle():
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module):], module))
        if module in done or module not in GRAPH:
            return
        for other in GRAPH[module]:
            visit(other, (*path, module))
        done.add(module)

    for module in GRAPH:
        visit(module, ())


def test_train_never_imports_evaluate_and_nothing_imports_the_cli():
    for module, found in GRAPH.items():
        if module.startswith("foreword.train"):
            assert not [i for i in found if i.startswith("foreword.evaluate")], module
        if module != "foreword.__main__":
            assert "foreword.cli" not in found, module


def test_relative_imports_and_clashes_with_verbs_are_not_used():
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, module
            if isinstance(node, ast.Import):  # `import foreword.train.x as y` would meet the function `train`
                assert not [a.name for a in node.names if a.asname and a.name.startswith("foreword.")], module


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_over_400_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_at_least_95_percent_of_functions_are_annotated():
    total, bare = 0, []
    for module, tree in TREES.items():
        for function in functions(tree):
            given = function.args
            arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
            named = [a for a in arguments if a is not None and a.arg not in ("self", "cls")]
            total += 1
            returns = function.returns is not None or function.name == "__init__"
            if not returns or any(a.annotation is None for a in named):
                bare.append(f"{module}.{function.name}")
    assert total > 300
    assert len(bare) <= 0.05 * total, bare


def is_public(name: str) -> bool:
    return not name.startswith("_")


def public(tree: ast.Module) -> Iterator[ast.AST]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and is_public(node.name):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from (f for f in node.body if isinstance(f, ast.FunctionDef) and is_public(f.name))


def test_every_module_and_public_name_is_documented():
    missing = [module for module, tree in TREES.items() if tree.body and ast.get_docstring(tree) is None]
    for module, tree in TREES.items():
        missing += [f"{module}.{node.name}" for node in public(tree) if ast.get_docstring(node) is None]
    assert not missing


def test_the_median_function_has_at_most_10_lines():
    sizes = [body_lines(function) for tree in TREES.values() for function in functions(tree)]
    assert statistics.median(sizes) <= 10


def test_no_print_outside_the_command_line():
    commands = {module for module in TREES if module.startswith("foreword.cli")}
    allowed = commands | {"foreword.train.progress", "foreword.pretrain.__main__", "foreword.pretrain.job"}
    for module in TREES.keys() - allowed:
        calls = [n for n in ast.walk(TREES[module]) if isinstance(n, ast.Call) and ast.unparse(n.func) == "print"]
        assert not calls, f"{module} line {calls[0].lineno}"


def test_no_address_of_this_machine_in_any_file():
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    checked = 0
    for name in names.stdout.splitlines():
        path = ROOT / name
        if path.suffix in {".py", ".md", ".yaml", ".toml", ".lock", ".txt", ""} and path.is_file():
            text = path.read_text(encoding="utf-8", errors="ignore")
            checked += 1
            for sign in ("/work" + "/", "/root" + "/", "--index" + "-url", "file:" + "///"):
                assert sign not in text or path == Path(__file__), f"{name} has {sign!r}"
    assert checked > 50 or not names.stdout  # a tree without git has nothing to list


def test_the_architecture_page_lists_every_file():
    page = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    tree = page[page.index("```") : page.index("```", page.index("```") + 3)]
    listed = set(_paths(tree))
    found = {str(path.relative_to(PACKAGE)) for path in FILES}
    assert found - listed == set(), "not in docs/ARCHITECTURE.md"
    assert {name for name in listed if name.endswith(".py")} - found == set(), "in docs/ARCHITECTURE.md, but gone"


def _paths(tree: str) -> Iterator[str]:
    """Paths in the drawn tree: two spaces of indent a level, folders end in `/`."""
    folders: list[str] = []
    for line in tree.splitlines():
        words = line.split()
        if not words or not words[0].endswith((".py", "/")):
            continue
        depth = (len(line) - len(line.lstrip())) // 2
        folders = folders[:depth]
        if words[0].endswith("/"):
            folders.append("" if depth == 0 else words[0])
        else:
            yield "".join(folders) + words[0]


def test_the_architecture_page_states_the_order_that_is_checked():
    page = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    names = [entry.removeprefix("foreword.") for entry in ORDER[1:]]
    line = next(line for line in page.splitlines() if line.startswith("`errors` "))
    assert line == " → ".join(f"`{name}`" for name in names)


def test_test_files_have_names_of_their_own():
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]  # pytest imports them by name alone
    assert sorted(names) == sorted(set(names))


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_importing_foreword_is_cheap_and_the_command_line_answers_at_once():
    code = "import foreword, foreword.cli, sys; foreword.cli.make_parser(); print('\\n'.join(sys.modules))"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "foreword.cli" in modules
    assert not {"torch", "transformers", "numpy", "peft", "sacrebleu", "datasets", "rich"} & set(modules)


def test_optional_libraries_are_imported_only_when_needed():
    optional = {"peft", "sacrebleu", "datasets", "pycocoevalcap", "sklearn", "scipy", "wandb", "mlflow", "pyarrow"}
    at_once = {name.split(".")[0] for tree in TREES.values() for name in _top_level(tree)}
    assert {"torch", "transformers", "safetensors"} <= at_once
    assert not optional & at_once
    users = [m for m, tree in TREES.items() if "peft" in {name.split(".")[0] for name in _all_imports(tree)}]
    assert users == ["foreword.baselines.lora"]  # PEFT is a baseline and what tests compare with, never a part


def _top_level(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def _all_imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_public_names_resolve_and_verbs_are_functions():
    import foreword
    import foreword.evaluate
    import foreword.generate
    import foreword.train

    for name in foreword.__all__:
        assert getattr(foreword, name) is not None
    for verb in VERBS:
        assert callable(getattr(foreword, verb))
    assert set(foreword.__all__) <= set(dir(foreword))
    with pytest.raises(AttributeError, match="lode_backbone"):
        _ = foreword.lode_backbone
