"""Tasks to learn with SEAL, and their data."""

from .base import Domain
from .knowledge import PROMPT_STYLES, KnowledgeDomain
from .passages import group_squad_rows, load_demo_passages, load_passages


__all__ = [
    "PROMPT_STYLES",
    "Domain",
    "KnowledgeDomain",
    "group_squad_rows",
    "load_demo_passages",
    "load_passages",
]
