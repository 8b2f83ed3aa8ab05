"""TLS towards registries: who is believed, and who we are.

The authorities of the system are believed (an administrator adds a company's own there), those of the host's own
configuration as well. ``requests`` is imported when the first connection is made: a daemon that never asks a registry
does not carry it.
"""

# ruff: noqa: ARG002 (arguments are those of the library's hooks)

from __future__ import annotations

import functools
import os
import ssl
from typing import TYPE_CHECKING, Any

from containerd.errors import InvalidArgument
from containerd.transfer.registry.hosts import Host

if TYPE_CHECKING:
    import requests
    from requests.adapters import HTTPAdapter

__all__ = ["adapter", "context"]


def context(host: Host, certificate: tuple[str, str] | None) -> ssl.SSLContext:
    """Return the TLS settings for a host; ``certificate`` is our own (certificate and key file; one may be both).

    Raises :class:`InvalidArgument` for a file that cannot be used, by its name.
    """
    settings = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    settings.minimum_version = ssl.TLSVersion.TLSv1_2
    if host.verify:
        _load_system_authorities(settings)
        for path in host.authorities:
            try:
                settings.load_verify_locations(path)
            except (OSError, ssl.SSLError) as error:
                raise InvalidArgument(f'unable to load CA cert "{path}": {_text(error)}: invalid argument') from error
    else:
        settings.check_hostname = False
        settings.verify_mode = ssl.CERT_NONE
    if certificate is not None:
        try:
            settings.load_cert_chain(*certificate)
        except (OSError, ssl.SSLError) as error:
            names = " and ".join(dict.fromkeys(certificate))
            raise InvalidArgument(f"failed to load X509 key pair {names}: {_text(error)}: invalid argument") from error
    return settings


def _load_system_authorities(settings: ssl.SSLContext) -> None:
    places = ssl.get_default_verify_paths()
    if places.cafile or (places.capath and os.path.isdir(places.capath) and os.listdir(places.capath)):
        settings.set_default_verify_paths()
    else:
        # A system without a store of its own: the one that comes with requests.
        import certifi

        settings.load_verify_locations(certifi.where())


def adapter(settings: ssl.SSLContext) -> HTTPAdapter:
    """Return what carries requests with these TLS settings; ``verify`` and ``cert`` of a request do not count."""
    made: HTTPAdapter = _adapter_class()(settings)
    return made


@functools.cache
def _adapter_class() -> Any:
    from requests.adapters import HTTPAdapter

    class Adapter(HTTPAdapter):
        def __init__(self, settings: ssl.SSLContext) -> None:
            self._settings = settings
            super().__init__(pool_connections=2, pool_maxsize=16, max_retries=0)

        def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
            super().init_poolmanager(*arguments, **options, ssl_context=self._settings)

        def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
            return super().proxy_manager_for(proxy, **options, ssl_context=self._settings)

        def build_connection_pool_key_attributes(
            self, request: requests.PreparedRequest, verify: Any, cert: Any = None
        ) -> Any:
            return super().build_connection_pool_key_attributes(request, True, None)[0], {}

        def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
            return

    return Adapter


def _text(error: OSError) -> str:
    return error.strerror or str(error)
