"""A program between an MCP server's command and its client: `python relay.py BYTES COMMAND …`.

It passes on what the command writes, and ends it when a line grows beyond the limit: the SDK would
keep the line in memory to its end. It imports nothing of rftkit, so that it starts in an instant.
"""

import signal
import subprocess
import sys

CHUNK_BYTES = 65_536
GRACE_SECONDS = 1.0


def main(limit: int, command: list[str]) -> int:
    """Run the command; returns its exit status, or 1 after a line that was too long."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0)
    assert process.stdout is not None
    size = 0
    try:
        while chunk := process.stdout.read(CHUNK_BYTES):
            newline = chunk.rfind(b"\n")
            size = len(chunk) - newline - 1 if newline >= 0 else size + len(chunk)
            if size > limit:
                return 1
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
        return process.wait()
    except BrokenPipeError:  # the reader has ended
        return 1
    finally:
        end(process)


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a process that still runs, first with a request and then by force."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
