"""What every thread and every task of the loop is doing: for the question why something does not go on."""

from __future__ import annotations

import asyncio
import io
import sys
import threading
import traceback

__all__ = ["stacks"]


async def stacks() -> tuple[str, str]:
    """Return (content type, text)."""
    output = io.StringIO()
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for identity, frame in sys._current_frames().items():
        output.write(f"thread {identity} [{names.get(identity, 'unknown')}]:\n")
        traceback.print_stack(frame, file=output)
        output.write("\n")
    for task in sorted(asyncio.all_tasks(), key=lambda task: task.get_name()):
        output.write(f"{task!r}\n")
        # Not Task.print_stack: the compiled coroutines of gRPC have frames without lines, or none.
        frames = task.get_stack() if getattr(task.get_coro(), "cr_frame", None) else []
        for frame in frames:
            output.write(f'  File "{frame.f_code.co_filename}", line {frame.f_lineno}, in {frame.f_code.co_name}\n')
        output.write("\n")
    return "text/plain; charset=utf-8", output.getvalue()
