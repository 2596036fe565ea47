"""Tasks to learn with SEAL, and their data."""

from .arc.domain import ArcDomain
from .base import Condition, Domain
from .knowledge.domain import KnowledgeDomain
from .knowledge.passages import group_squad_rows, load_demo_passages, load_passages, shuffle_passages
from .knowledge.templates import PROMPT_STYLES
from .knowledge.training_formats import TRAINING_FORMATS


__all__ = [
    "PROMPT_STYLES",
    "TRAINING_FORMATS",
    "ArcDomain",
    "Condition",
    "Domain",
    "KnowledgeDomain",
    "group_squad_rows",
    "load_demo_passages",
    "load_passages",
    "shuffle_passages",
]
