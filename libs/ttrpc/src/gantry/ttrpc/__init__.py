"""ttrpc: the small RPC protocol between containerd and its shims.

`protocol` has no I/O; `client` blocks, `aio` is for asyncio, `server` is driven by a selector, `aio_server` by asyncio.
"""

from gantry.ttrpc.errors import Code, ConnectionLost, DeadlineExceeded, TTRPCError

__all__ = ["Code", "ConnectionLost", "DeadlineExceeded", "TTRPCError"]
