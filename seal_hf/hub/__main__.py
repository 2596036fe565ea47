"""
A run's self-edits as a dataset, from the command line.

    python -m seal_hf.hub OUTPUT_DIR --repo_id me/self-edits    # private, unless --public is given
    python -m seal_hf.hub OUTPUT_DIR --folder self-edits
"""

import argparse
import sys
from collections.abc import Sequence

from .self_edits import push_self_edits, save_self_edits


def main(arguments: Sequence[str] | None = None) -> None:
    """Save or push a run's self-edits; `python -m seal_hf.hub --help` states the options."""
    parser = argparse.ArgumentParser(prog="python -m seal_hf.hub", description="A run's self-edits as a dataset.")
    parser.add_argument("output_dir", metavar="OUTPUT_DIR", help="output directory of the run")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--repo_id", help="repository of the Hub to push to, such as me/self-edits")
    target.add_argument("--folder", help="folder to save in, in place of a push")
    parser.add_argument("--public", action="store_true", help="make a new repository public; it is private otherwise")
    parser.add_argument("--include_evaluation", action="store_true", help="add self-edits about held-out passages")
    options = parser.parse_args(arguments)
    if options.public and options.folder is not None:
        parser.error("--public goes with --repo_id")
    evaluation = {"include_evaluation": options.include_evaluation}
    try:
        if options.repo_id is not None:
            done = push_self_edits(options.output_dir, options.repo_id, private=not options.public, **evaluation)
        else:
            done = save_self_edits(options.output_dir, options.folder, **evaluation)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(f"{done}\n")


if __name__ == "__main__":
    main()
