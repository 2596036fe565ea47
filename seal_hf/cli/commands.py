"""What each command does. The model's libraries are imported by those that need them, so that the others start at once."""

import json
import os
import re
import runpy
import sys
from argparse import Namespace
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import seal_hf

from ..domains.files import decoded, read_text
from ..shelf import Book, Route, Shelf
from .progress import Progress, quiet_libraries


Command = Callable[[Namespace], None]
_HEADING = re.compile(r"^#{1,6}[ \t]+(.*?)[ \t#]*$", re.MULTILINE)
_STANDARD_INPUT = "-"


class WrongUse(Exception):
    """Arguments that do not go together; the message says how they do."""


def default_model() -> str:
    """What is loaded unless another model is named."""
    return os.environ.get("SEAL_MODEL") or "embedded"


def learn(options: Namespace) -> None:
    """Learn each text, and say what became of it in a line."""
    files = options.files or [_STANDARD_INPUT]
    if options.title is not None and len(files) > 1:
        raise WrongUse("--title goes with one text; learn the files one by one")
    if not options.files and sys.stdin.isatty():
        raise WrongUse("give a FILE, or a text on the standard input")
    texts = [_titled(file, options.title) for file in files]  # all are read before any is learned

    quiet_libraries()
    from ..shelf.learning import WritingSettings, learn, learner

    own, settings = Shelf(options.shelf), WritingSettings(seed=options.seed)
    with Progress() as progress:
        progress("loading the model", 0, 0)
        lm = learner(options.model)
    for title, text in texts:
        with Progress() as progress:
            book = learn(lm, own, text, title, model=options.model, settings=settings, on_progress=progress)
        print(f"learned {book.id}: {_told(book)}", flush=True)


def _titled(file: str, title: str | None) -> tuple[str, str]:
    """A text with its title, its first heading or the file's name."""
    if file == _STANDARD_INPUT:
        text, name = decoded(sys.stdin.buffer.read(), "The standard input"), None
    else:
        text, name = read_text(file), Path(file).stem
    found = _HEADING.search(text)
    title = title if title is not None else found[1] if found and found[1] else name
    if title is None:
        raise WrongUse("the text on the standard input has no heading; say with --title what it is about")
    return title, text


def ask(options: Namespace) -> None:
    """Answer on the standard output; who answered, and why, on the other."""
    if not options.question.strip():
        raise WrongUse("the question is empty")
    own = Shelf(options.shelf)
    route = None if options.base else _route(own, options.question, options.book)
    is_asked = route is not None and (route.fits or options.book is not None)

    quiet_libraries()
    from ..shelf import asking
    from ..shelf.learning import learner

    book, passage = (route.book, route.passage) if is_asked else (None, None)
    lm = learner(options.model or (book.model if book is not None else _default_model(own)))
    answer = asking.ask(lm, options.question, book, passage)
    if options.json:
        _print_json({"question": options.question, "answer": answer.text, **_choice(route, is_asked)})
        return
    print(answer.text, flush=True)
    print(f"({_who(route, is_asked)})", file=sys.stderr)


def _route(own: Shelf, question: str, name: str | None) -> Route | None:
    if name is None:
        return own.route(question)
    from ..shelf.routing import Router

    return Router([own.find(name)]).route(question)


def _default_model(own: Shelf) -> str:
    """The base model of the newest book, since it is at hand."""
    books = own.books()
    return books[0].model if books else default_model()


def _choice(route: Route | None, is_asked: bool) -> dict[str, Any]:
    if route is None:
        return {"book": None}
    return {
        "book": route.book.id if is_asked else None,
        "passage": route.number if is_asked else None,
        "nearest_book": route.book.id,
        "score": round(route.score, 3),
        "threshold": route.threshold,
    }


def _who(route: Route | None, is_asked: bool) -> str:
    if route is None:
        return "the base model"
    score = f"score {route.score:.2f}, {route.threshold} is needed"
    if not is_asked:
        return f"the base model: the nearest book, {route.book.id}, does not fit; {score}"
    number = f", passage {route.number} of {len(route.book.passages)}" if len(route.book.passages) > 1 else ""
    return f"{route.book.id}{number}; {score if route.fits else f'chosen, {score}'}"


def shelf(options: Namespace) -> None:
    """List the books, newest first: a table on a terminal, else lines with tabs."""
    books = Shelf(options.shelf).books()
    if options.json:
        _print_json([book.summary() for book in books])
        return
    rows = [(book.id, book.title, book.local_time, _told(book), book.base_model_id) for book in books]
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(" ".join(cell.split()) for cell in row))
        return
    if not rows:
        print("The shelf is empty; `seal learn FILE` puts a book on it.")
        return
    for name, title, when, told, model in rows:
        print(f"{name}\n    {title}\n    {when}; {told}; {model}")


def _told(book: Book) -> str:
    num_passages, num_pairs = len(book.passages), sum(len(one.pairs) for one in book.passages)
    parts = [
        f"{num_passages} passage{'s' * (num_passages != 1)}",
        f"{num_pairs} question{'s' * (num_pairs != 1)}",
        *([f"{book.num_right} of {book.num_asked} answered right"] if book.num_asked else []),
        *([f"loss {book.loss:.2f}"] if book.loss is not None else []),
        f"{book.num_bytes / 1e6:,.1f} MB",
    ]
    return ", ".join(parts)


def forget(options: Namespace) -> None:
    """Remove the books, and name each."""
    own = Shelf(options.shelf)
    for name in options.books:
        print(f"forgot {own.forget(name)}")


def merge(options: Namespace) -> None:
    """Make one book of two, and name it."""
    book = Shelf(options.shelf).merge(*options.books, title=options.title)
    print(f"merged {book.id}: {_told(book)}")


def export(options: Namespace) -> None:
    """Write a folder or a zip file, and print its path."""
    book = Shelf(options.shelf).find(options.book)
    quiet_libraries()
    from ..shelf.sharing import export

    print(export(book, options.target))


def push(options: Namespace) -> None:
    """Upload a book, and print the repository's address."""
    book = Shelf(options.shelf).find(options.book)
    quiet_libraries()
    from ..shelf.sharing import push

    print(push(book, options.repo_id, private=not options.public))


def app(options: Namespace) -> None:
    """Start the app of the repository that this package is in."""
    path = _of_repository("app.py")
    if find_spec("gradio") is None:
        raise ImportError('The app needs gradio; install it with `pip install "seal-hf[app]"`.')
    sys.argv = [str(path), *(["--shelf", options.shelf] if options.shelf else []), *options.rest]
    runpy.run_path(str(path), run_name="__main__")


def train(options: Namespace) -> None:
    """Run the script of the repository that this package is in."""
    path = _of_repository("trainers/knowledge.py")
    sys.argv = [str(path), *options.rest]
    sys.path.insert(0, str(path.parent.parent))
    runpy.run_module("trainers.knowledge", run_name="__main__", alter_sys=True)


def _of_repository(name: str) -> Path:
    """
    Raises:
        ImportError: The package was installed without its repository.
    """
    path = Path(seal_hf.__file__).parents[1] / name
    if not path.is_file():
        raise ImportError(
            f"{name} is not part of the installed package; clone the repository of seal-hf and run `pip install -e .` in it."
        )
    return path


def _print_json(value: object) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=1))
