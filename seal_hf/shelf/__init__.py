"""
What a model was taught, kept on this machine: a shelf of books.

A [`Book`] is a text with what the model learned of it: its passages, the questions with their answers, and an adapter for
each passage in PEFT's format. A [`Shelf`] adds, lists, merges, exports and forgets them and finds the passage that a
question is about, without the model. [`learn`] and [`ask`] (in `learning` and `asking`) need it.
"""

from .book import Book, DamagedBook, LearnedPassage
from .routing import THRESHOLD, Route
from .shelf import Shelf


__all__ = ["THRESHOLD", "Book", "DamagedBook", "LearnedPassage", "Route", "Shelf"]
