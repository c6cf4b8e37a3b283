"""Tools that a model calls while it is trained: where calls go, and what comes back.

    Tools                       the tools of a job: `definitions`, `call`, `close`
    ToolCall, ToolReply         a call as the model wrote it, and what the model reads next
    ToolFailed                  the tool's server failed: so has the rollout, which is never a zero
    open_tools                  the Tools of a job's `tools` entries
    try_tool                    one call outside of a job
    reach                       whether a server is there
    check_tools, mask_tools     those entries: checked, and without their secrets
    serve, ToolError            Python functions as a tool server, for notebooks

Calls go over HTTP, as in OpenAI's and Azure's preview of tools in RFT. Not here: the turns of a
rollout (`server.training`), and how calls are written into a prompt or read from an answer
(`server.engine`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rftkit.lazy import lazily

if TYPE_CHECKING:
    from rftkit.tools.entries import check_tools, mask_tools
    from rftkit.tools.functions import ToolError
    from rftkit.tools.serving import Served, serve
    from rftkit.tools.toolbox import Tools, open_tools, reach, try_tool
    from rftkit.tools.values import ToolCall, ToolFailed, ToolReply, ToolServer

__all__ = [
    "Served",
    "ToolCall",
    "ToolError",
    "ToolFailed",
    "ToolReply",
    "ToolServer",
    "Tools",
    "check_tools",
    "mask_tools",
    "open_tools",
    "reach",
    "serve",
    "try_tool",
]

_HOMES = {
    "entries": ("check_tools", "mask_tools"),
    "functions": ("ToolError",),
    "serving": ("Served", "serve"),
    "toolbox": ("Tools", "open_tools", "reach", "try_tool"),
    "values": ("ToolCall", "ToolFailed", "ToolReply", "ToolServer"),
}
__getattr__, __dir__ = lazily(__name__, _HOMES)
