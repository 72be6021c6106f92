"""What the command line of the proxy settles once, beside the settings of every server."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field

from qprobe_server.errors import StartupError
from qprobe_server.proxy.address import Address, read_upstreams
from qprobe_server.proxy.headers import Header, make_key_header
from qprobe_server.proxy.keys import find_api_keys, find_upstream_keys
from qprobe_server.proxy.upstream import Bounds

__all__ = ["ProxySettings", "read_proxy_settings"]


@dataclass(frozen=True, kw_only=True)
class ProxySettings:
    """The proxy's own settings.

    Attributes:
        upstreams: By the model's name; that of None takes all other models.
        keys: The header with its key of each upstream that needs one.
        passes_credentials: Whether upstreams get their clients' own keys.
        has_n: Whether upstreams give several choices when they are asked for several.
        bounds: For what is sampled at an upstream.
        budget_tokens: The most tokens of the candidates of a request, >= 1; None: any.
        api_keys: Each opens the proxy; none: it is open.
        allowed_origins: Of pages that may ask from a browser, beside its own; ``*`` is any.
        host: To listen on; None: all of this machine's addresses.
        port: Likewise; 0 is any.
        shutdown_timeout_s: Seconds for open requests when the proxy stops, >= 0.
    """

    upstreams: Mapping[str | None, Address]
    keys: Mapping[str | None, Header] = field(default_factory=dict, repr=False)
    passes_credentials: bool = False
    has_n: bool = False
    bounds: Bounds = field(default_factory=Bounds)
    budget_tokens: int | None = None
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    allowed_origins: tuple[str, ...] = ()
    host: str | None = None
    port: int = 8000
    shutdown_timeout_s: float = 0.0


def read_proxy_settings(args: argparse.Namespace) -> ProxySettings:
    """Return the settings of the flags.

    Raises:
        StartupError: Flags, or what the environment adds to them, do not go together.
    """
    upstreams = read_upstreams(args.upstream)
    keys = find_upstream_keys(upstreams)
    api_keys = find_api_keys(args.api_key)
    if args.pass_authorization and (keys or api_keys):
        raise StartupError(
            "--pass-authorization: the key of a request is the upstream's then, so that neither "
            "--api-key nor a key of the upstream's in the environment can go with it"
        )
    return ProxySettings(
        upstreams=upstreams,
        keys={
            name: make_key_header(key, name=args.upstream_key_header) for name, key in keys.items()
        },
        passes_credentials=args.pass_authorization,
        has_n=args.upstream_n,
        bounds=Bounds(
            max_reply_mib=args.max_reply_mib,
            concurrency=args.upstream_concurrency,
            deadline_s=args.timeout,
        ),
        budget_tokens=args.budget_tokens,
        api_keys=tuple(api_keys),
        allowed_origins=tuple(args.allowed_origins or ()),
        host=args.host,
        port=args.port,
        shutdown_timeout_s=float(args.shutdown_timeout or 0),
    )
