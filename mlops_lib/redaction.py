"""Which texts are secrets, and stars in their place wherever something is written.

A value is a secret where its variable is named like one, where it has the form of one (a key of a cloud or a forge, a
token, a password in an address or a connection string), or where it looks as random as one. Nothing here asks what a
secret is for: outputs, logs and differences are searched for the texts themselves, also as Python, JSON, a URL, HTML or
base64 would write them, and line by line. None are paths, words, numbers, versions, ids and digests in hexadecimal.

>>> redact("postgresql://ada:hunter22@db", ["hunter22"])
'postgresql://ada:***@db'
"""

from __future__ import annotations

import base64
import html
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, quote_plus, unquote, urlsplit

SECRET_WORDS = (
    *("token", "secret", "password", "passwd", "passphrase", "credential"),
    *("api_key", "apikey", "access_key", "private_key", "signing_key"),
)
SECRET_PARTS = {"pwd", "pat", "pass", "auth"}  # words of a name, between underscores
SHORTEST = 6  # characters of a secret that is no store's password: stars for every `root` make outputs unreadable
RANDOM_LENGTH, RANDOM_BITS = 20, 3.5  # from how many characters, and bits in each, a text looks random
# Values that are secrets whatever their name: keys of clouds and forges, tokens, private keys, passwords in addresses.
SECRET_FORM = re.compile(
    r"(?:AKIA|ASIA)[0-9A-Z]{16}|gh[pousr]_\w{30,}|github_pat_\w{22,}|glpat-[\w-]{20,}|[sr]k[-_][\w-]{20,}"
    r"|xox[abprs]-[\w-]{10,}|AIza[\w-]{35}|hf_\w{30,}|dapi[0-9a-f]{32}|npm_\w{36}|SG\.[\w-]{20,}\.[\w-]{20,}"
    r"|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]*|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*|\w+://[^/\s:@]+:[^/\s:@]+@"
)
# Connection strings of JDBC, ODBC, Azure and the like.
_IN_STRING = re.compile(
    r"(?i)\b(?:password|passwd|pwd|accountkey|sharedaccesskey|sharedaccesssignature|secret|token|sig|api_?key)"
    r"\s*=\s*\{?([^;&\s'\"}]+)"
)


def is_secret_name(name: str) -> bool:
    """Return whether a parameter or variable of this name would hold a secret."""
    lower = name.lower()
    return any(word in lower for word in SECRET_WORDS) or bool(SECRET_PARTS & set(re.split(r"[^a-z0-9]+", lower)))


def is_secret_value(value: Any) -> bool:
    """Return whether a value has the form of a secret, whatever it is called."""
    text = value if isinstance(value, str) else repr(value)
    return bool(SECRET_FORM.search(text) or _IN_STRING.search(text) or _looks_random(text))


def _looks_random(text: str) -> bool:
    """Whether one word mixes capitals, small letters and digits like a generated key."""
    if len(text) < RANDOM_LENGTH or not re.fullmatch(r"[A-Za-z0-9+=_~-]+", text):
        return False
    if not all(re.search(each, text) for each in ("[a-z]", "[A-Z]", "[0-9]")):
        return False
    shares = [count / len(text) for count in Counter(text).values()]
    return -sum(share * math.log2(share) for share in shares) >= RANDOM_BITS


def find_secrets(environ: Mapping[str, str], tracking_uri: str) -> tuple[str, ...]:
    """Return the secrets of an environment and of a store's URI as they may be written, longest first.

    The store's own password counts whatever its length, others from six characters.
    """
    found = {part for name, value in environ.items() for part in _find_in(name, value) if len(part) >= SHORTEST}
    written = {form for secret in found for form in _write(secret) if len(form) >= SHORTEST}
    return tuple(sorted(written | find_passwords(tracking_uri), key=len, reverse=True))


def _find_in(name: str, value: str) -> Iterator[str]:
    """Yield what is secret of one variable: all of it, or passwords in it; a place on this machine is none."""
    if value.startswith("/") and os.path.exists(value):  # noqa: PTH110 - PWD, SSH_AUTH_SOCK, a key's file
        return
    is_key = name.lower().endswith(("_key", "_key_id")) and not re.fullmatch(r"[a-z_]*|[\d.]*|[./~].*", value)
    if is_secret_name(name) or is_key or _looks_random(value):
        yield value
    yield from find_passwords(value)
    yield from (found[1] for found in _IN_STRING.finditer(value))
    yield from (found[0] for found in SECRET_FORM.finditer(value) if "://" not in found[0])


def _write(secret: str) -> Iterator[str]:
    """Yield the ways in which a secret comes into texts."""
    for text in (secret, *(line for line in secret.splitlines() if not line.startswith("-----"))):
        yield text
        yield repr(text)[1:-1]
        yield json.dumps(text)[1:-1]
        yield json.dumps(text, ensure_ascii=False)[1:-1]
        yield html.escape(text)
        yield quote(text, safe="")
        yield quote_plus(text)
        yield base64.b64encode(text.encode("utf-8", "surrogateescape")).decode()


def find_passwords(url: str) -> set[str]:
    """Return the password in a URL, as it is written there and as it is meant; nothing where there is none.

    >>> sorted(find_passwords("postgresql://ada:s%3Acret@db/mlflow"))
    ['s%3Acret', 's:cret']
    """
    try:
        password = urlsplit(url).password if "://" in url else None
    except ValueError:  # such as a bracket without its partner
        return set()
    return {password, unquote(password)} if password else set()


def redact(value: Any, secrets: Sequence[str]) -> Any:
    """Return texts with every secret replaced by stars, in place where they are in lists and dicts."""
    if not secrets:
        return value
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, "***")
    elif isinstance(value, list):
        value[:] = [redact(item, secrets) for item in value]
    elif isinstance(value, dict):
        for name in value:
            value[name] = redact(value[name], secrets)
    return value
