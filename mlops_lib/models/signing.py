"""Ed25519 signatures of manifests, for stores that more people may write to than may release from.

A digest that stands beside the files stops accidents, not somebody who may write both. A signature stops that person
too, since the private key is where models are trained and the public keys are in the project file or in a folder that
``MLOPS_TRUSTED_KEYS`` names: neither is ever read from the store. What is signed names its kind and the registered
model, so that no signature can be used for another. docs/signing.md says what this protects from, and what not.

>>> sign = read_signer(create_keys(folder))  # doctest: +SKIP
>>> raise_for_signature("text", sign("text"), trusted, subject="The text")  # doctest: +SKIP
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from mlops_lib import data
from mlops_lib.errors import SignatureError

# On the logged model and on the version, beside the manifest.
MANIFEST_SIGNATURE_TAG = "mlops.manifest_signature"
PRIVATE_FILE, PUBLIC_FILE = "signing.key", "signing.pub"
KIND = "ed25519"


def manifest_text(name: str, digest: str) -> str:
    """Return what is signed for a model's files: that these are files of registered model ``name``."""
    return f"mlops manifest v1\n{name}\n{digest}"


def create_keys(folder: Path) -> Path:
    """Write a new pair of keys, the private one readable by its owner alone; return the private file.

    Raises
    ------
    SignatureError, WriteError
        If there is a key already, or none can be written there; nothing was written.
    """
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - 0.1 s that hardly a command needs
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415 - as above

    path = folder / PRIVATE_FILE
    key = Ed25519PrivateKey.generate()
    plain = serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    with data.translate_write_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError as error:
            raise SignatureError("key", path=path, reason="exists already and is not written over") from error
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
        (folder / PUBLIC_FILE).write_text(f"{_describe(key.public_key().public_bytes_raw())}\n", encoding="ascii")
    return path


def read_signer(path: Path | None) -> Callable[[str], str] | None:
    """Return what signs a text with the private key in ``path``; None where the project has no key.

    A signature reads ``ed25519:PUBLIC:SIGNATURE``, both in base64, so that a reader can tell whose it is.

    Raises
    ------
    SignatureError
        If the file is no private Ed25519 key in PEM, or others may read it. Nothing was signed.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415 - as above
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415 - as above

    if path is None:
        return None
    try:
        mode, content = path.stat().st_mode, path.read_bytes()
    except OSError as error:
        raise SignatureError("key", path=path, reason=f"cannot be read ({type(error).__name__})") from error
    if mode & 0o077:
        raise SignatureError(
            "key", path=path, reason=f"may be read by others (mode {mode & 0o777:o}; 'chmod 600' closes it)"
        )
    try:
        key = load_pem_private_key(content, password=None)
    except (ValueError, TypeError) as error:
        raise SignatureError("key", path=path, reason="is no private key in PEM without a password") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SignatureError("key", path=path, reason="is no Ed25519 key")
    public = _describe(key.public_key().public_bytes_raw())
    return lambda text: f"{public}:{base64.b64encode(key.sign(text.encode())).decode()}"


def raise_for_signature(text: str, signature: str | None, trusted: Iterable[str], *, subject: str) -> None:
    """Raise unless one of the trusted keys has signed exactly ``text``; nothing is asked where no key is trusted.

    Parameters
    ----------
    trusted : iterable of str
        Public keys, ``ed25519:BASE64``, each perhaps followed by a blank and a comment.
    subject : str
        For messages, such as ``Version 7 of 'flight-delays'``.

    Raises
    ------
    SignatureError
    """
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - as above
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415 - as above

    keys = {line.split()[0] for line in trusted}
    if not keys:
        return
    if not signature:
        raise SignatureError("untrusted", subject=subject, reason="has no signature")
    public, _, proof = signature.rpartition(":")
    if public not in keys:
        raise SignatureError(
            "untrusted", subject=subject, reason=f"was signed with '{public[:60]}', which is no trusted key"
        )
    try:
        Ed25519PublicKey.from_public_bytes(_read(public)).verify(base64.b64decode(proof, validate=True), text.encode())
    except (InvalidSignature, ValueError, binascii.Error) as error:
        raise SignatureError(
            "untrusted", subject=subject, reason="has a signature that belongs to something else"
        ) from error


def _describe(public: bytes) -> str:
    return f"{KIND}:{base64.b64encode(public).decode()}"


def _read(public: str) -> bytes:
    return base64.b64decode(public.removeprefix(f"{KIND}:"), validate=True)
