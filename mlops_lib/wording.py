"""How texts for people list, suggest and fill in: what the templates of errors are made with.

>>> listed(["a", "b"]), nearest("prd", ["dev", "prod"])
('a, b', " Did you mean 'prod'?")
"""

from __future__ import annotations

import difflib
import functools
import re
import string
from collections.abc import Iterable, Mapping
from typing import Any


def nearest(name: str, options: Iterable[object]) -> str:
    """Return `` Did you mean 'x'?`` for the option nearest to ``name``, or an empty text."""
    matches = difflib.get_close_matches(name, [str(option) for option in options], n=1, cutoff=0.5)
    return f" Did you mean '{matches[0]}'?" if matches else ""


def listed(items: Iterable[object], *, limit: int = 12) -> str:
    """Join at most ``limit`` items with commas and count the rest; ``none`` when there are none."""
    texts = [str(item) for item in items]
    more = f" and {len(texts) - limit} more" if len(texts) > limit else ""
    return ", ".join(texts[:limit]) + more if texts else "none"


# What moves a terminal's cursor, ends a line, or turns the direction of what follows; and halves of characters.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str, *, keep: str = "") -> str:
    r"""Return a text of a store, a file or a person as it may be printed: control characters are escaped.

    >>> print(visible("gates passed\r\x1b[2K"))
    gates passed\r\x1b[2K
    """

    def escape(found: re.Match[str]) -> str:
        return found[0] if found[0] in keep else found[0].encode("unicode_escape", "surrogatepass").decode()

    return _UNSEEN.sub(escape, text)


class Template(string.Formatter):
    """What templates can do besides ``str.format``: three formats of their own, for facts of this error.

    ============================  ========================================================================
    ``{stages:list}``             joined by commas, the first 12 of them; ``{stages:list 5}``, the first 5
    ``{stage:near stages}``       `` Did you mean 'prod'?``, or nothing: the nearest among another fact
    ``{line:if  (at %)|nowhere}`` `` (at …)`` with the fact in place of ``%``; ``nowhere`` where it is empty
    ============================  ========================================================================
    """

    def __init__(self, facts: Mapping[str, Any]) -> None:
        self.facts = facts

    def format_field(self, value: Any, format_spec: str) -> str:
        """Return a value in one of these formats, or in Python's own."""
        kind, _, rest = format_spec.partition(" ")
        if kind == "list":
            return listed(value, limit=int(rest or 12))
        if kind == "near":
            return nearest(str(value), self.facts[rest])
        if kind == "if":
            filled, _, empty = rest.partition("|")
            shown = listed(value) if isinstance(value, tuple) else str(value)
            return filled.replace("%", shown) if value else empty
        return str(super().format_field(value, format_spec))


@functools.cache
def facts_of(text: str) -> frozenset[str]:
    """Return the names of the facts that a text is made of: those after a single brace, and those after ``near``."""
    return frozenset(re.findall(r"(?:(?<!{){|:near )(\w+)", text))
