"""Ed25519 signatures of the lines of a ledger, by the package cryptography."""

import base64
import binascii
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from amun_ext.reading import read_text
from amun_ext.validation import InputError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

INSTALL = "pip install 'amun_ext[sign]'"


def private_key(path: Path) -> "Ed25519PrivateKey":
    """Of a PEM file without a password, as `openssl genpkey -algorithm ed25519` makes it. InputError for any other."""
    ed25519, pem = _modules()
    key: Ed25519PrivateKey = _loaded(
        path,
        "an Ed25519 private key in a PEM file without a password",
        lambda content: pem.load_pem_private_key(content, password=None),
        ed25519.Ed25519PrivateKey,
    )
    return key


def public_key(path: Path) -> "Ed25519PublicKey":
    """Of a PEM file, as `openssl pkey -pubout` makes it. InputError for any other."""
    ed25519, pem = _modules()
    expected = "an Ed25519 public key in a PEM file"
    key: Ed25519PublicKey = _loaded(path, expected, pem.load_pem_public_key, ed25519.Ed25519PublicKey)
    return key


def _modules() -> tuple[ModuleType, ModuleType]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise InputError(f"signatures need cryptography: {INSTALL} ({error})") from error
    return ed25519, serialization


def _loaded(path: Path, expected: str, load: Callable[[bytes], Any], kind: type) -> Any:
    try:
        key = load(read_text("key", path, expected).encode())
    except (ValueError, TypeError) as error:  # a TypeError where it has a password
        if isinstance(error, InputError):
            raise
        raise InputError(f"key must be {expected}, got {path}: {error}") from error
    if not isinstance(key, kind):
        raise InputError(f"key must be {expected}, got {path}, which is of another kind")
    return key


def signature(key: "Ed25519PrivateKey", text: str) -> str:
    """In base64. The same for the same text."""
    return base64.b64encode(key.sign(text.encode())).decode()


def is_signed(key: "Ed25519PublicKey", text: str, signed: object) -> bool:
    """Whether `signed` is the signature of this text by the owner of the key."""
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(base64.b64decode(signed, validate=True) if isinstance(signed, str) else b"", text.encode())
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return True
