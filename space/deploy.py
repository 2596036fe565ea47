"""
Put the app on a Hugging Face Space.

    python space/deploy.py --repo_id user/seal --private
    python space/deploy.py --repo_id user/seal --model Qwen/Qwen2.5-1.5B-Instruct --hardware zero-a10g
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
# As a script it runs from any folder, also where the package is not installed.
sys.path.insert(0, str(ROOT))

from huggingface_hub import constants  # noqa: E402
from huggingface_hub.utils import validate_repo_id  # noqa: E402

from seal_hf.hub.errors import explaining_hub_errors  # noqa: E402
from seal_hf.hub.transfer import hub_api, is_hub_id, upload  # noqa: E402
from seal_hf.models.embedded import EMBEDDED, EMBEDDED_MODELS  # noqa: E402


# Where each file of the Space comes from. pyproject.toml stays away, since a Space installs requirements.txt alone and
# imports the package from its own folder.
FILES = {
    "app.py": "app.py",
    "LICENSE": "LICENSE",
    "README.md": "space/README.md",
    "requirements.txt": "space/requirements.txt",
}


def stage(folder: Path) -> list[str]:
    """Lay the Space's files out in a folder, and return their paths in it."""
    for name, source in FILES.items():
        shutil.copyfile(ROOT / source, folder / name)
    unwanted = shutil.ignore_patterns("__pycache__", "*.py[co]", ".*")
    shutil.copytree(ROOT / "seal_hf", folder / "seal_hf", ignore=unwanted)
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def with_model(card: str, model: str) -> str:
    """The card of a Space whose model is another; an embedded one is not preloaded from the Hub."""
    head, separator, text = card.partition("preload_from_hub:\n")
    default = EMBEDDED_MODELS[EMBEDDED].model_id
    if model in EMBEDDED_MODELS:
        head = head.replace(f"  - {default}\n", f"  - {EMBEDDED_MODELS[model].model_id}\n")
        return head + text.partition("\n")[2]
    text = f"  - {model}\n" + text.partition("\n")[2]
    return head.replace(f"  - {default}\n", f"  - {model}\n") + separator + text


def deploy(args: argparse.Namespace) -> str:
    """Upload and configure; returns the Space's address."""
    validate_repo_id(args.repo_id)
    if args.model is not None and args.model not in EMBEDDED_MODELS and not is_hub_id(args.model):
        raise ValueError(f"--model {args.model} is not a Hub id; give one, or {EMBEDDED!r}, which needs no Hub.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = stage(folder)
        if args.model is not None:
            card = folder / "README.md"
            card.write_text(with_model(card.read_text(encoding="utf-8"), args.model), encoding="utf-8")
        if args.dry_run:
            return "\n".join(files)
        commit = upload(
            folder,
            args.repo_id,
            repo_type="space",
            space_sdk="gradio",
            private=args.private or None,
            commit_message="Deploy the app",
            delete_patterns=["*"],
            safe="",  # the staged files are about to go
            token=args.token,
        )
    repo_id = commit.repo_url.repo_id
    with explaining_hub_errors(f"Setting up {repo_id}", repo_id, "Its files are uploaded."):
        api = hub_api(args.token)
        if args.model is not None:
            api.add_space_variable(repo_id, "SEAL_MODEL", args.model)
        if args.hardware is not None:
            api.request_space_hardware(repo_id, args.hardware)
    return f"{constants.ENDPOINT}/spaces/{repo_id}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Put the app on a Hugging Face Space.")
    parser.add_argument("--repo_id", required=True, help="The Space, user/name; made where there is none.")
    parser.add_argument("--private", action="store_true", help="Make it private.")
    parser.add_argument("--hardware", help="Hardware to ask for, such as zero-a10g; paid ones cost money.")
    parser.add_argument("--model", help="Hub id of the model that the Space serves, 'embedded' or 'embedded-tiny'.")
    parser.add_argument("--token", help="Access token; the one saved by `hf auth login` where absent.")
    parser.add_argument("--dry_run", action="store_true", help="List the files and upload nothing.")
    try:
        print(deploy(parser.parse_args()))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
