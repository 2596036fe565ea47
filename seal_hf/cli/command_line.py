"""
Teach a small language model texts of yours, and ask it about them.

    seal learn notes.md
    seal ask "Who built the Orrick Skerry Lighthouse?"

Exit codes: 0 done, 1 an error, 2 a wrong use of the command, 130 an interrupt (Ctrl+C).
"""

import argparse
import logging
import signal
import sys
from collections.abc import Sequence

from . import commands


_MODEL_HELP = "Hub id or folder of a causal LM, 'embedded' (0.5B parameters) or 'embedded-tiny' (135M)"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="seal", description=__doc__.split("\n\n")[0].strip())
    parser.add_argument("--shelf", metavar="FOLDER", help="where the books are; by default in $SEAL_HF_HOME")
    subcommands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: commands.Command, summary: str) -> argparse.ArgumentParser:
        own = subcommands.add_parser(name, help=summary, description=summary)
        own.set_defaults(run=run, parser=own)
        return own

    learn = command("learn", commands.learn, "Learn texts, each as a book.")
    learn.add_argument(
        "files", nargs="*", metavar="FILE", help="text files; without one, or with -, the standard input"
    )
    learn.add_argument("--title", help="what the text is about; by default its first heading, or the file's name")
    learn.add_argument("--model", default=commands.default_model(), help=_MODEL_HELP)
    learn.add_argument("--seed", type=int, default=0, help="seed of writing and training")

    ask = command("ask", commands.ask, "Ask a question, of the book that it fits or else of the base model.")
    ask.add_argument("question", metavar="QUESTION")
    who = ask.add_mutually_exclusive_group()
    who.add_argument("--book", help="ask this book, by its id or title, whatever the question fits")
    who.add_argument("--base", action="store_true", help="ask the base model")
    ask.add_argument("--model", help=f"{_MODEL_HELP}; by default the one that the book was learned on")
    ask.add_argument("--json", action="store_true", help="print the answer, the book and the score as JSON")

    shelf = command("shelf", commands.shelf, "List the books.")
    shelf.add_argument("--json", action="store_true", help="print them as JSON")

    forget = command("forget", commands.forget, "Remove books.")
    forget.add_argument("books", nargs="+", metavar="BOOK", help="id or title")

    merge = command("merge", commands.merge, "Make one book of two.")
    merge.add_argument("books", nargs=2, metavar="BOOK", help="id or title")
    merge.add_argument("--title", help="title of the book; by default that of the first")

    export = command("export", commands.export, "Write a book's adapters for PEFT.")
    export.add_argument("book", metavar="BOOK", help="id or title")
    export.add_argument("target", metavar="TARGET", help="a new folder, or a new file that ends in .zip")

    push = command("push", commands.push, "Upload a book's adapters to the Hub.")
    push.add_argument("book", metavar="BOOK", help="id or title")
    push.add_argument("repo_id", metavar="USER/NAME")
    push.add_argument("--public", action="store_true", help="make a new repository public; it is private otherwise")

    for name, run, summary in (
        ("app", commands.app, "Start the app in the browser; further options go to app.py."),
        ("train", commands.train, "Train with the outer loop; all options go to trainers.knowledge."),
    ):
        own = subcommands.add_parser(name, help=summary, add_help=False)
        own.set_defaults(run=run, parser=own)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the command.

    Args:
        arguments (`Sequence[str]`, *optional*):
            Its arguments. Defaults to those of the process.

    Returns:
        `int`: the exit code.
    """
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.run not in (commands.app, commands.train):
        options.parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.rest = rest
    if not logging.getLogger("seal_hf").handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("note: %(message)s"))
        logging.getLogger("seal_hf").addHandler(handler)
    # A request to end removes what is half done, as Ctrl+C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        options.run(options)
    except commands.WrongUse as error:
        options.parser.error(str(error))
    except (ValueError, OSError, ImportError, *_torch_errors()) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing was left half-done", file=sys.stderr)
        return 130
    return 0


def _torch_errors() -> list[type[Exception]]:
    """The error of a device without enough memory, which says what to do; none where the command has not imported torch."""
    torch = sys.modules.get("torch")
    return [] if torch is None else [torch.OutOfMemoryError]
