"""Registries as clients see them: credentials in a header, plain HTTP or not, errors in the real engine's words."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Sequence
from ipaddress import ip_address, ip_network

from dockerd import errors
from dockerd.images.transfer import Credentials
from gantry.oci.reference import Reference

__all__ = [
    "decode_credentials",
    "default_scheme",
    "translate_archive_error",
    "translate_pull_error",
    "translate_push_error",
]

_LOOPBACK = ("127.0.0.0/8", "::1/128")
_REQUEST = re.compile(r'(?:Get|Head|Post|Put|Patch) "(https?)://([^/"]+)[^"]*": (.*)', re.DOTALL)
_PLATFORM = re.compile(r"no match for platform (\S+/\S+) in")
# How containerd ends messages, to tell its own kinds of errors apart.
_SUFFIX = re.compile(
    r"(?:: (?:unavailable|unknown|failed precondition|invalid argument|authorization failed|unauthenticated))+$"
)


def decode_credentials(header: str) -> Credentials | None:
    """``X-Registry-Auth``: base64url of a JSON object. None for nothing; raises InvalidParameter for damaged input."""
    if not header:
        return None
    try:
        raw = base64.b64decode(header + "=" * (-len(header) % 4), altchars=b"-_", validate=True)
        value = json.loads(raw)
    except (ValueError, binascii.Error) as error:
        raise errors.InvalidParameter(f"invalid X-Registry-Auth header: {error}") from error
    if not isinstance(value, dict):
        raise errors.InvalidParameter("invalid X-Registry-Auth header: not a JSON object")
    fields = {key.lower(): item for key, item in value.items() if isinstance(item, str)}
    username, password = fields.get("username", ""), fields.get("password", "")
    if fields.get("auth") and not username:
        try:
            username, _, password = base64.b64decode(fields["auth"], validate=True).decode().partition(":")
        except ValueError as error:
            raise errors.InvalidParameter(f"invalid X-Registry-Auth header: auth: {error}") from error
    credentials = Credentials(username, password, fields.get("identitytoken", ""), fields.get("registrytoken", ""))
    return credentials if credentials != Credentials() else None


def default_scheme(domain: str, insecure: Sequence[str]) -> str:
    """``http`` for a registry on this machine or one that is configured as insecure (host or CIDR), else ``https``."""
    host, _, port = domain.rpartition(":")
    if not host or not port.isdigit():
        host = domain
    host = host.strip("[]")
    if host == "localhost":
        return "http"
    for entry in (*_LOOPBACK, *insecure):
        if entry in (domain, host) or _within(host, entry):
            return "http"
    return "https"


def _within(host: str, network: str) -> bool:
    try:
        return ip_address(host) in ip_network(network, strict=False)
    except ValueError:
        return False


def translate_pull_error(error: errors.EngineError, reference: Reference, scheme: str) -> errors.EngineError:
    """What the real engine says when a pull (over ``scheme``) fails this way."""
    text = str(error)
    if "no basic auth credentials" in text:
        path = f"/v2/{reference.path}/manifests/{reference.digest or reference.tag}"
        return errors.SystemFailure(f'Head "{scheme}://{reference.domain}{path}": no basic auth credentials')
    unreachable = _unreachable(text)
    if unreachable is not None:
        return unreachable
    if isinstance(error, (errors.Unauthorized, errors.Forbidden)):
        return errors.NotFound(
            f"pull access denied for {reference.familiar_name}, repository does not exist or may require "
            f"'docker login': denied: {_SUFFIX.sub('', text)}"
        )
    if "no match for platform" in text:
        match = _PLATFORM.search(text)
        wanted = f" for {match[1]}" if match else ""
        return errors.NotFound(f"no matching manifest{wanted} in the manifest list entries")
    if isinstance(error, errors.NotFound) and "failed to resolve" in text:
        return errors.NotFound(f"manifest for {reference.familiar} not found: manifest unknown: manifest unknown")
    return translate_archive_error("pull", error)


def translate_push_error(error: errors.EngineError) -> errors.EngineError:
    """What the real engine says when a push fails this way."""
    text = str(error)
    unreachable = _unreachable(text)
    if unreachable is not None:
        return unreachable
    if isinstance(error, (errors.Unauthorized, errors.Forbidden)):
        return errors.Unauthorized(f"denied: requested access to the resource is denied: {_SUFFIX.sub('', text)}")
    return translate_archive_error("push", error)


def translate_archive_error(what: str, error: errors.EngineError) -> errors.EngineError:
    """The error of a transfer (``what``: load, save ...) for people."""
    if isinstance(error, errors.NotSupported):
        return _without_transfer(what, error)
    return type(error)(_SUFFIX.sub("", str(error)))


def _without_transfer(what: str, error: errors.EngineError) -> errors.EngineError:
    return errors.NotSupported(
        f"cannot {what} images: this containerd does not offer the transfer service, or not this transfer ({error})"
    )


def _unreachable(text: str) -> errors.EngineError | None:
    """A request that got no answer; the real engine asks for ``/v2/`` first, so that is what its message names."""
    match = _REQUEST.search(text)
    if match is None:
        return None
    scheme, host, reason = match.groups()
    reason = _SUFFIX.sub("", reason)
    if reason.lower() in ("connection refused", "no route to host", "network is unreachable"):
        reason = f"dial tcp {host}: connect: {reason.lower()}"
    elif "name or service not known" in reason.lower() or "name resolution" in reason.lower():
        reason = f"dial tcp: lookup {host}: no such host"
    return errors.SystemFailure(f'Get "{scheme}://{host}/v2/": {reason}')
