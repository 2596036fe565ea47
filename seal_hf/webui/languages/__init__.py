"""
The texts of the page, a file for each language, and which of them a visitor gets: that of the browser, or English.

What is laid out once is translated by Gradio in the browser ([`laid_out`]), what an event shows on the server ([`say`]). Both
choose by the first language of the browser. Programs and logs get English.
"""

import string
import tomllib
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlencode

import gradio as gr
from gradio.context import LocalContext
from gradio.i18n import I18nData


ENGLISH = "en"


class Message(str):
    """
    A text of the page: in English for programs and logs, and to be said in other languages by [`told`].

    Parameters:
        key (`str`):
            Its key in the files of the languages, such as `"teach.write"`. Where the key has the forms `one` and `other`, the field
            `count` decides between them.
        fields:
            What `str.format` fills into the text. A field may be a message itself.

    Raises:
        KeyError: There is no such key, or a field of it is missing.

    Example:

    ```python
    >>> found = Message("shelf.passages", count=1)
    >>> str(found), found.fields
    ('1 passage', {'count': 1})

    ```
    """

    key: str
    fields: dict[str, object]

    def __new__(cls, key: str, /, **fields: object) -> "Message":
        message = super().__new__(cls, _said(key, fields, ENGLISH))
        message.key, message.fields = key, fields
        return message

    def __reduce__(self) -> tuple:
        return of_data, (as_data(self),)


def as_data(text: object) -> object:
    """A text for JSON: of a message its key and its fields, from which [`of_data`] makes it again; others as they are."""
    if not isinstance(text, Message):
        return text
    return {"key": text.key, "fields": {name: as_data(value) for name, value in text.fields.items()}}


def of_data(data: object) -> object:
    """The text of which [`as_data`] made this."""
    if not isinstance(data, dict):
        return data
    return Message(data["key"], **{name: of_data(value) for name, value in data["fields"].items()})


def message_of(error: BaseException) -> str:
    """What an error says, as a message where it was raised with one."""
    return error.args[0] if error.args and isinstance(error.args[0], Message) else str(error)


def language_of(accepted: str) -> str:
    """
    The language of the page for a browser, by the rule of Gradio's frontend: its first language, without the region where that is
    unknown, or English.

    Args:
        accepted (`str`):
            The header `Accept-Language`.

    Example:

    ```python
    >>> [language_of(accepted) for accepted in ("de-AT,de;q=0.9,en;q=0.8", "fr,de;q=0.5", "")]
    ['de', 'en', 'en']

    ```
    """
    first = accepted.partition(",")[0].partition(";")[0].strip()
    return next((tag for tag in (first, first.partition("-")[0]) if tag in LANGUAGES), ENGLISH)


def language() -> str:
    """The language of the request that an event handler works on; English outside of handlers."""
    request = LocalContext.request.get(None)
    return ENGLISH if request is None else language_of(request.request.headers.get("accept-language", ""))


def told(text: str | BaseException) -> str:
    """A message, or what an error says, in the language of the request. What is no message stays as it is."""
    text = message_of(text) if isinstance(text, BaseException) else text
    return _said(text.key, text.fields, language()) if isinstance(text, Message) else text


def say(key: str, /, **fields: object) -> str:
    """The text of a key in the language of the request. Arguments and errors are as in [`Message`]."""
    return _said(key, fields, language())


def laid_out(message: str, /, **fields: object) -> I18nData:
    """
    A text for a widget that is laid out once. Gradio translates it in the browser: labels, infos, placeholders, titles, the values
    of buttons and Markdown, and the choices of lists.

    Args:
        message (`str`):
            A key, or a [`Message`].
        fields:
            As in [`Message`], for a key.
    """
    message = message if isinstance(message, Message) else Message(message, **fields)
    # The browser fills in no fields, so that each set of them is a text of its own. Its name has no brace, which would end it.
    name = f"{message.key}?{urlencode(message.fields)}" if message.fields else message.key
    _LAID_OUT[name] = message
    return I18nData(name)


def i18n() -> gr.I18n:
    """All texts that were laid out so far, for `gr.Blocks.launch`."""
    return gr.I18n(
        **{
            language: {name: _said(message.key, message.fields, language) for name, message in _LAID_OUT.items()}
            for language in LANGUAGES
        }
    )


def _said(key: str, fields: Mapping[str, object], language: str) -> str:
    texts = LANGUAGES[language]
    if key not in texts and "count" in fields:
        key = f"{key}.{'one' if fields['count'] == 1 else 'other'}"
    fields = {
        name: _said(value.key, value.fields, language) if isinstance(value, Message) else value
        for name, value in fields.items()
    }
    return _Formatter(texts).vformat(texts[key], (), fields)


class _Formatter(string.Formatter):
    """`str.format` with the signs of a language in numbers."""

    def __init__(self, texts: Mapping[str, str]):
        self._signs = str.maketrans(",.", texts["number.thousands"] + texts["number.decimal"])

    def format_field(self, value: object, format_spec: str) -> str:
        shown = super().format_field(value, format_spec)
        return shown.translate(self._signs) if isinstance(value, int | float) else shown


def _flat(values: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


_FILES = sorted(Path(__file__).parent.glob("*.toml"))
# The texts of each language by their keys.
LANGUAGES = {file.stem: _flat(tomllib.loads(file.read_text(encoding="utf-8"))) for file in _FILES}
_LAID_OUT: dict[str, Message] = {}
