"""Which texts are secrets, and stars in their place wherever something is written.

A value is a secret where its variable is named like one, or where it is the password of a URL. Nothing here asks what
a secret is for: outputs, logs and differences are searched for the texts themselves.

>>> redact("postgresql://ada:hunter22@db", ["hunter22"])
'postgresql://ada:***@db'
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

SECRET_WORDS = ("token", "secret", "password", "passwd", "api_key", "apikey", "credential", "private_key")
SHORTEST = 6  # characters of a secret that is no store's password: stars for every `root` make outputs unreadable


def is_secret_name(name: str) -> bool:
    """Return whether a parameter or variable of this name would hold a secret."""
    return any(word in name.lower() for word in SECRET_WORDS)


def find_secrets(environ: Mapping[str, str], tracking_uri: str) -> tuple[str, ...]:
    """Return the secrets of an environment and of a store's URI, longest first.

    The store's own password counts whatever its length, others from six characters.
    """
    named = [value for name, value in environ.items() if is_secret_name(name)]
    in_urls = [password for value in environ.values() for password in find_passwords(value)]
    long = {value for value in (*named, *in_urls) if len(value) >= SHORTEST}
    return tuple(sorted(long | find_passwords(tracking_uri), key=len, reverse=True))


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
