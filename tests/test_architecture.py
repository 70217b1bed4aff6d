"""The house keeps its shape: imports point down only, one file imports each big library, and the manner is kept."""

import ast
import functools
import statistics
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from support import TESTS

import finetune

ROOT = Path(finetune.__file__).parent
FLOORS = (
    "errors", "choices", "reading", "unchanged", "saving", "writing", "events", "reporting", "finetune", "resources",
    "caches", "known", "later", "silence", "shortage", "ranks", "machine", "tensors", "references", "recipe",
    "diffusion", "data", "families", "adapters", "optimizers", "encoding", "planning", "files", "proof", "sampling",
    "evaluation", "captioning", "masking", "pages", "training", "doctor", "api", "cli", "__main__",
)  # fmt: skip
"""folders and the few files beside them, from the ground up: each may import from those before it, and within itself"""
IMPORTERS = {
    "peft": ("adapters.attach", "adapters.layers"),
    "bitsandbytes": ("optimizers", "families.quantised"),
    "diffusers": ("families.",),
    "transformers": ("families.", "evaluation.similarity", "captioning.", "masking."),
    "accelerate": ("machine", "ranks", "families.", "reporting.trackers"),
    "huggingface_hub": ("families",),
    "imagehash": ("data.images.looks",),
    "rich": ("reporting.", "cli."),
    "typer": ("cli",),
    "PIL": (
        "data.images.borders",
        "data.images.buckets",
        "data.images.looks",
        "reporting.tensorboard",
        "data.images.colours",
        "data.images.costs",
        "data.images.decode",
        "data.text.descriptions",
        "data.masks",
        "data.photographic",
        "data.prepared_masks",
        "masking.",
        "evaluation.",
        "sampling.",
        "captioning.views",
        "pages.",
    ),
    "jinja2": ("pages.html",),
    "matplotlib": ("pages.figures",),
    "pydantic": ("recipe", "data.audit", "data.example", "captioning.vocabulary"),
    "tomlkit": ("recipe", "data.prepare"),
    "psutil": ("doctor",),
    "datasets": ("data.sources.tables",),
    "torchvision": (),
    "pickle": (),
    "requests": (),
}
"""library -> who may import it; a trailing dot means all files in there"""
RAISE_ANYTHING = {"families.folder", "data.sources.tables"}
"""where a library is called that raises bare Exceptions, which are put into words"""
KEEP_ANYTHING = {"reporting.trackers"}
"""where another thread's exceptions are kept for the one that asks for them"""
LAZY_REASONS = {
    "accelerate": "a second, and only where something trains or a checkpoint is opened",
    "bitsandbytes": "a second, and only for weights or optimizers in few bits; no wheel for every machine",
    "datasets": "two seconds, and only for tables and data sets of the hub",
    "diffusers": "seconds, and --help and check must answer at once",
    "transformers": "seconds, and --help and check must answer at once",
    "finetune": "commands must not import what other commands need; a plan counts on meta without peft until asked",
    "huggingface_hub": "only for a hub id",
    "imagehash": "a quarter of a second, and only where a picture is decoded to be looked at",
    "matplotlib": "a second, and only where curves are drawn",
    "mlflow": "only where report.to names it",
    "numpy": "status and --help must answer at once, and reporting is on their way",
    "pyarrow": "half a second, and only for parquet files",
    "PIL": "status and --help must answer at once, and reporting is on their way",
    "resource": "not on every system",
    "rich": "in the view of a command, not in its declaration",
    "tomlkit": "only to write",
    "torch": "families must be nameable without torch; torch.utils.tensorboard is slow",
    "trackio": "only where report.to names it",
}
"""library -> why some import of it stands inside a function"""


def sources() -> Iterator[tuple[str, Path, ast.Module]]:
    for path in sorted(ROOT.rglob("*.py")):
        if "bundled" in path.relative_to(ROOT).parts[:-1]:
            continue
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "finetune"
        yield name, path, ast.parse(path.read_text(encoding="utf-8"))


def face(tree: ast.Module) -> ast.Module:
    """What `import finetune` carries out of it: its names for type checkers are no imports, and come when asked for."""
    carried = [
        node for node in tree.body if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    ]
    return ast.Module(carried, [])


SOURCES = [(name, path, face(tree) if name == "finetune" else tree) for name, path, tree in sources()]
MODULES = {name for name, _, _ in SOURCES}


@functools.cache
def imports(tree: ast.AST) -> tuple[tuple[str, int], ...]:
    """Every module imported, also in functions and for type checking only: dotted name and line."""
    return tuple(_imports(tree))


def _imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                ours = inner.removeprefix("finetune.") in MODULES
                yield (inner if ours else str(node.module)), node.lineno


def ours(dotted: str) -> str | None:
    if dotted == "finetune":
        return "finetune"
    return dotted.removeprefix("finetune.") if dotted.startswith("finetune.") else None


def floor(name: str) -> int:
    return FLOORS.index(name.partition(".")[0])


def violations(name: str, tree: ast.AST) -> list[str]:
    """Imports that point up."""
    return [
        f"{name}:{line} imports {target}"
        for dotted, line in imports(tree)
        if (target := ours(dotted)) is not None and floor(target) > floor(name)
    ]


def circles(inside: dict[str, set[str]]) -> list[str]:
    """Files that import themselves in the end, of file -> what it imports."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            new = inside.get(waiting.pop(), set()) - seen
            seen |= new
            waiting += new
        return seen

    return [name for name in inside if name in reached(name)]


def test_every_file_stands_on_a_floor():
    assert {name.partition(".")[0] for name in MODULES} == set(FLOORS)


@pytest.mark.parametrize("name, path, tree", SOURCES, ids=[name for name, _, _ in SOURCES])
def test_imports_point_down(name, path, tree):
    assert not violations(name, tree)


def test_no_file_imports_itself_by_way_of_others():
    # a folder's __init__ is imported with each of its files: it is no part of a circle of theirs
    inside = {
        name: {target for d, _ in imports(tree) if (target := ours(d)) and not name.startswith(f"{target}.")}
        for name, _, tree in SOURCES
    }
    assert not circles(inside)
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "name, code",
    [
        ("errors", "from finetune.recipe import Recipe"),
        ("diffusion.chance", "def f():\n    from finetune.planning import plan"),
        ("planning.plan", "import finetune.cli.plan_view"),
        ("encoding.store", "from finetune.planning.plan import Plan"),
        ("recipe", "from finetune.data import dataset\nfrom finetune import errors"),
    ],
)
def test_an_import_that_points_up_is_found_wherever_it_stands(name, code):
    assert len(violations(name, ast.parse(code))) == 1


@pytest.mark.parametrize("library", IMPORTERS)
def test_each_big_library_has_its_own_importer(library):
    allowed = IMPORTERS[library]
    found = {name for name, _, tree in SOURCES for d, _ in imports(tree) if d.partition(".")[0] == library}
    strangers = [n for n in found if not any(n == a or n == a.rstrip(".") or n.startswith(f"{a.rstrip('.')}.")
                                             for a in allowed)]  # fmt: skip
    assert not strangers, f"{library}: {strangers}"
    assert found or not allowed, f"nobody imports {library}: take it off the table"


def test_an_import_inside_a_function_has_a_listed_reason():
    found = set()
    for _, _, tree in SOURCES:
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef):
                found |= {dotted.partition(".")[0] for dotted, _ in imports(function)}
    assert found - set(sys.stdlib_module_names) | (found & {"resource"}) == set(LAZY_REASONS)


def test_there_is_no_print_no_broad_except_no_pickle_and_no_remote_code():
    found = []
    for name, path, tree in SOURCES:
        for node in ast.walk(tree):
            where = f"{name}:{getattr(node, 'lineno', 0)}"
            match node:
                case ast.Call(func=ast.Name(id="print")):
                    found.append(f"{where} prints")
                case ast.ExceptHandler(type=None) | ast.ExceptHandler(type=ast.Name(id="Exception" | "BaseException")):
                    last = node.body[-1]
                    worded = isinstance(last, ast.Raise) and last.cause is not None and name in RAISE_ANYTHING
                    kept = name in KEEP_ANYTHING
                    if not worded and not kept and not (isinstance(last, ast.Raise) and last.exc is None):
                        found.append(f"{where} catches everything, and keeps it")
                case ast.Attribute(value=ast.Name(id="torch"), attr="load" | "save"):
                    found.append(f"{where} opens or writes a pickle")
                case ast.Call(func=ast.Attribute(value=asked, attr="exists" | "is_file" | "is_dir"), args=[]):
                    if ast.unparse(asked) != "entry":  # of os.scandir, which never fails
                        found.append(f"{where} asks a Path, which fails for names that cannot be: reading has the same")
                case ast.Call(func=ast.Name(id="eval" | "exec" | "compile")):
                    found.append(f"{where} runs text")
        if "trust_remote_code" in path.read_text(encoding="utf-8").replace("trust_remote_code=False", ""):
            found.append(f"{name} may trust remote code")
    assert not found


def too_long(paths: Iterable[Path]) -> dict[str, int]:
    """Files of more lines than one reader keeps in mind, and how many they have."""
    lengths = {str(path): len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    return {name: length for name, length in lengths.items() if length > 450}


def test_files_keep_to_a_size_that_can_be_read_and_so_do_those_of_tests(tmp_path):
    tests = list(TESTS.rglob("*.py"))
    assert {Path(__file__), TESTS / "support" / "bases.py"} <= set(tests)
    assert not too_long([*(path for _, path, _ in SOURCES), *tests]), "split it when a second reader needs half of it"
    long, short = tmp_path / "long.py", tmp_path / "short.py"
    long.write_text("x = 1\n" * 451), short.write_text("x = 1\n" * 450)
    assert too_long([long, short]) == {str(long): 451}


def test_functions_keep_to_a_size_that_can_be_read():
    lengths = sorted(
        (node.end_lineno or 0) - node.lineno + 1
        for _, _, tree in SOURCES
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    )
    median, ninetieth = statistics.median(lengths), lengths[len(lengths) * 9 // 10]
    assert median < 12 and ninetieth < 40 and lengths[-1] < 80, (median, ninetieth, lengths[-1])


def borrowed(tree: ast.AST, tests: set[str]) -> list[str]:
    """The test modules that a module of tests takes something out of, wherever and however it does."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f"{node.module or ''}.{alias.name}" for alias in node.names]
    return [name for name in found if tests & set(name.split("."))]


def test_no_test_takes_its_helpers_out_of_another_test():
    modules = {path: ast.parse(path.read_text(encoding="utf-8")) for path in TESTS.rglob("*.py")}
    tests = {path.stem for path in modules if path.stem.startswith("test_")}
    assert len(tests) > 40
    assert not {path.name: found for path, tree in modules.items() if (found := borrowed(tree, tests))}
    for code in (
        "from test_run import x",
        "import families.test_sd as y",
        "def f():\n    from families import test_sd",
    ):
        assert borrowed(ast.parse(code), tests), code


def test_what_tests_are_made_of_runs_nothing_when_imported():
    """Definitions, imports and names for values: no statement that acts on what is outside of it."""
    harmless = (ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.Expr)
    for path in (TESTS / "support").glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            text = isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant)
            assert isinstance(node, harmless) and not text, f"{path.name}:{node.lineno}"


def test_the_face_of_the_package_imports_only_when_asked():
    tree = next(tree for name, _, tree in SOURCES if name == "finetune")
    assert {dotted.partition(".")[0] for dotted, _ in imports(tree)} == {"importlib", "typing"}


RETIRED = frozenset({
    # a word of our own -> the field's, which stands in its place
    "Worn", "wear", "Shot", "painting", "painted", "unpacked", "Frame", "told", "tell", "Listen", "Path", "Line",
    "drawn", "tuned", "logit_deviation", "density", "cell", "Facts", "Published", "Original", "plain", "skeleton",
    "hollow", "Modules", "sites", "places", "less", "detached", "follow_mean", "averaged", "Work", "micro", "group",
    "turned", "world", "Eyes", "Lens", "likeness", "mutual", "between", "agreement", "Learnt", "Fit", "misfits",
    "doubts", "Words", "spoken", "Final", "Card", "settle", "agreed", "shortage", "Machine",
})  # fmt: skip
"""names that house and papers know otherwise"""
SAME_BY_DESIGN = ("cli", "api", "families", "adapters")
"""folders whose modules answer to the same names: commands, the calls from Python, a family's and a method's verbs"""


def public_names(tree: ast.Module) -> Iterator[str]:
    """Classes, functions, types and constants that a module defines."""
    for node in tree.body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case ast.Assign(targets=targets):
                yield from (target.id for target in targets if isinstance(target, ast.Name))


def members(tree: ast.Module) -> Iterator[str]:
    """Fields and methods of a module's classes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield from public_names(ast.Module(node.body, []))


def test_no_public_name_is_defined_in_two_modules():
    defined: dict[str, set[str]] = {}
    for name, _, tree in SOURCES:
        if name.partition(".")[0] not in SAME_BY_DESIGN:
            for one in set(public_names(tree)):
                defined.setdefault(one, set()).add(name)
    assert len(defined) > 500
    assert not {one: where for one, where in defined.items() if not one.startswith("_") and len(where) > 1}


def test_names_are_the_fields_and_not_our_own():
    used = {(name, one) for name, _, tree in SOURCES for one in (*public_names(tree), *members(tree))}
    assert ("diffusion.process", "RectifiedFlow") in used and ("diffusion.process", "logit_std") in used
    assert not {(name, one) for name, one in used if one in RETIRED}


def test_files_are_named_for_what_they_are():
    vague = {"utils", "util", "helpers", "helper", "common", "manager", "misc", "core", "base_utils"}
    assert not [name for name in MODULES if vague & set(name.split("."))]


@pytest.mark.parametrize("name, path, tree", SOURCES, ids=[name for name, _, _ in SOURCES])
def test_a_module_says_in_its_first_line_what_it_is_for(name, path, tree):
    if name.startswith("_"):
        return
    first = (ast.get_docstring(tree) or "").partition("\n")[0]
    assert 15 < len(first) <= 120 and (first[0].isalnum() or first[0] == "`"), f"{name}: {first!r}"
