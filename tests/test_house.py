"""The house that CONTRIBUTING.md describes: which room may import which, and what stays in its room."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.folders import ROOT


# From the ground up. A file imports from its own room and from those below it.
FLOORS = (
    *("self_edit", "grading", "domains", "models", "records", "hub", "adapters", "inner_loop", "generation"),
    *("self_adapting_lm", "shelf", "rollout", "evaluation", "outer_loop", "webui", "cli"),
)
# What only the domains know; their defaults are chosen in two files, and shelf and app are made for one of them.
NAMES_OF_A_DOMAIN = {"KnowledgeDomain", "prompt_style", "split_newlines"}
KEYS_OF_A_DOMAIN = {"prompt_style", "split_newlines", "context", "title"}
DEFAULTS = ("seal_hf/self_adapting_lm.py", "seal_hf/outer_loop/seal_trainer.py")
FILES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "seal_hf").rglob("*.py"))


def imported_modules(tree: ast.AST, file: str) -> Iterator[str]:
    """Full names of all modules and names that a file imports, wherever in it."""
    package = Path(file).parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *(node.module or "").split(".")))
            yield from (f"{module}.{alias.name}".replace("..", ".") for alias in node.names)


def room_of(module: str) -> str | None:
    """The room of one of our modules; `None` for others, and for the package's own lazy names."""
    parts = module.split(".")
    return parts[1] if parts[0] == "seal_hf" and len(parts) > 1 and parts[1] in FLOORS else None


def violations(source: str, file: str) -> list[str]:
    """What a file does that its room does not allow."""
    tree, own = ast.parse(source), room_of(file.removesuffix(".py").replace("/", "."))
    found = []
    for module in imported_modules(tree, file):
        top, room = module.partition(".")[0], room_of(module)
        if room is not None and own is not None and FLOORS.index(room) > FLOORS.index(own):
            found.append(f"{own} imports {module}, which is above it")
        if top in ("app", "trainers", "benchmarks", "tests"):
            found.append(f"imports {module}")
        if top == "gradio" and own != "webui":
            found.append(f"{own} imports gradio")
        if top in ("torch", "peft", "transformers") and own in ("self_edit", "grading", "domains"):
            found.append(f"{own} imports {top}")
    if own not in ("domains", "shelf", "webui") and file not in DEFAULTS:
        found += [f"knows {name!r}, which is a domain's" for name in sorted(domain_names_in(tree))]
    return found


def domain_names_in(tree: ast.AST) -> set[str]:
    """What a file names of a domain: imported, as an attribute, or as a key."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= {node.value} & KEYS_OF_A_DOMAIN
        elif isinstance(node, ast.Attribute):
            found |= {node.attr} & NAMES_OF_A_DOMAIN
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.name for alias in node.names} & NAMES_OF_A_DOMAIN
    return found


@pytest.mark.parametrize("file", FILES)
def test_a_file_keeps_to_its_room(file):
    assert violations((ROOT / file).read_text(encoding="utf-8"), file) == []


@pytest.mark.parametrize(
    ("file", "source", "found"),
    [
        ("adapters/bank.py", "from ..generation.base import draw_seed", "which is above it"),
        ("adapters/bank.py", "from ..models.access import unwrap", None),
        ("adapters/bank.py", "from .layout import LoraLayout", None),
        ("adapters/bank.py", "def f():\n    import seal_hf.rollout.stage", "which is above it"),
        ("adapters/bank.py", "from seal_hf.outer_loop import policy", "which is above it"),
        ("records/plot.py", "from .. import webui", "which is above it"),
        ("self_adapting_lm.py", "from .rollout import stage", "which is above it"),
        ("self_adapting_lm.py", "from .generation.base import Sampling", None),
        ("rollout/stage.py", "import gradio as gr", "imports gradio"),
        ("webui/page.py", "import gradio as gr", None),
        ("webui/work/jobs.py", "import trainers.knowledge", "imports trainers"),
        ("shelf/shelf.py", "from ..webui import work", "which is above it"),
        ("cli/commands.py", "from ..shelf.learning import learn", None),
        ("domains/base.py", "def f():\n    from torch import nn", "imports torch"),
        ("domains/knowledge/domain.py", "import peft", "imports peft"),
        ("rollout/stage.py", "from ..domains import KnowledgeDomain", "knows 'KnowledgeDomain'"),
        ("rollout/stage.py", "example['context']", "knows 'context'"),
        ("hub/model_card.py", "example.get('title')", "knows 'title'"),
        ("outer_loop/plan.py", "lm.domain.prompt_style", "knows 'prompt_style'"),
        ("outer_loop/plan.py", '"""Not the context, but a title."""\naxes.set(title=1)', None),
    ],
)
def test_what_leaves_its_room_is_found(file, source, found):
    problems = violations(source, f"seal_hf/{file}")
    assert (problems == []) if found is None else any(found in problem for problem in problems), problems


def test_every_room_is_on_a_floor():
    files = {path.name for path in (ROOT / "seal_hf").iterdir() if path.is_file()}
    assert files == {"__init__.py", "py.typed", "self_adapting_lm.py", "self_edit.py"}
    rooms = {path.name for path in (ROOT / "seal_hf").iterdir() if (path / "__init__.py").is_file()}
    assert rooms == set(FLOORS) - {"self_adapting_lm", "self_edit"}
