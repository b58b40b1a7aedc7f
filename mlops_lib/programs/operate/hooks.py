"""Whoever wants to know what a tick came to: plain functions, and an address that gets it as signed JSON.

Neither may stop a tick or hold it up: what goes wrong is noted beside it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
import time
import urllib.request
from collections.abc import Mapping
from typing import Any

from mlops_lib.project import Project
from mlops_lib.redaction import redact

TRIES, WAIT_S, TIMEOUT_S = 3, 0.5, 3.0
SIGNATURE = "X-Mlops-Signature"


def tell(project: Project, tick: Mapping[str, Any], notes: list[str]) -> None:
    """Call the policy's hooks and post to its webhook; add to ``notes`` what went wrong.

    Posting has three tries in at most twelve seconds, in a thread of its own.
    """
    for hook in project.policy.hooks:
        try:
            hook(tick)
        except Exception as error:  # noqa: BLE001 - a user's function, and a tick must not depend on it
            name = getattr(hook, "__name__", repr(hook))
            notes.append(redact(f"hook {name}: {type(error).__name__}: {error}", project.secrets))
    if name := project.policy.webhook:
        address, secret = project.environ.get(name), project.environ.get(f"{name}_SECRET", "")
        if not address:
            notes.append(f"webhook: the environment variable {name} holds no address")
            return
        failures: list[str] = []
        thread = threading.Thread(target=_post, args=(address, secret, tick, failures), daemon=True)
        thread.start()
        thread.join(TRIES * (TIMEOUT_S + WAIT_S) + 1)
        if thread.is_alive() or len(failures) == TRIES:
            notes.append(redact(f"webhook: {failures[-1] if failures else 'no answer'}", project.secrets))


def sign(body: bytes, secret: str) -> str:
    """Return the signature of what is posted: ``sha256=`` and the HMAC-SHA256 of the body in hexadecimal."""
    return f"sha256={hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()}"


def _post(address: str, secret: str, tick: Mapping[str, Any], failures: list[str]) -> None:
    body = json.dumps(tick, default=str).encode()
    headers = {"Content-Type": "application/json", **({SIGNATURE: sign(body, secret)} if secret else {})}
    for number in range(TRIES):
        try:
            if not address.startswith(("http://", "https://")):
                raise ValueError("the address is neither http:// nor https://")  # noqa: TRY301 - told as any other
            request = urllib.request.Request(address, body, headers, method="POST")
            with urllib.request.urlopen(request, timeout=TIMEOUT_S):
                return
        except (OSError, ValueError) as error:
            failures.append(str(error))
            time.sleep(WAIT_S * (number + 1))
