"""Tools that a model calls while it is trained: where calls go, and what comes back.

    Tools                       the tools of a job: `definitions`, `call`, `close`
    ToolCall, ToolReply         a call as the model wrote it, and what the model reads next
    ToolFailed                  the tool's server failed: so has the rollout, which is never a zero
    open_tools                  the Tools of a job's `tools` entries

Calls go over HTTP, as in OpenAI's and Azure's preview of tools in RFT. Not here: the turns of a
rollout (`server.training`), and how calls are written into a prompt or read from an answer
(`server.engine`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rftkit.lazy import lazily

if TYPE_CHECKING:
    from rftkit.tools.toolbox import Tools, open_tools
    from rftkit.tools.values import ToolCall, ToolFailed, ToolReply, ToolServer

__all__ = ["ToolCall", "ToolFailed", "ToolReply", "ToolServer", "Tools", "open_tools"]

_HOMES = {
    "toolbox": ("Tools", "open_tools"),
    "values": ("ToolCall", "ToolFailed", "ToolReply", "ToolServer"),
}
__getattr__, __dir__ = lazily(__name__, _HOMES)
