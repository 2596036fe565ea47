"""Tasks to learn with SEAL, and their data."""

from .base import Domain
from .knowledge.domain import PROMPT_STYLES, KnowledgeDomain
from .knowledge.passages import group_squad_rows, load_demo_passages, load_passages


__all__ = [
    "PROMPT_STYLES",
    "Domain",
    "KnowledgeDomain",
    "group_squad_rows",
    "load_demo_passages",
    "load_passages",
]
