"""A file name and a button that writes it, and asks before a file of somebody else is replaced.

Not here: what is written.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ipywidgets

from rftkit.errors import InputError
from rftkit.views.markup import note
from rftkit.wholefile import write_whole

__all__ = ["SaveBox", "Saver"]


class Saver:
    """Writes texts to files, and knows which files hold what it wrote itself."""

    def __init__(self) -> None:
        self._wrote: dict[Path, str] = {}

    def replaces(self, path: Path, text: str) -> bool:
        """Whether writing the text would overwrite what somebody else wrote there."""
        path = path.expanduser()
        if not path.exists():
            return False
        try:
            found = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return True
        return found not in (text, self._wrote.get(path.resolve()))

    def write(self, path: Path, text: str, *, replace: bool = False) -> Path:
        """Write the text.

        Raises:
            InputError: another text is there and `replace` is False, or it cannot be written.
        """
        if not replace and self.replaces(path, text):
            raise InputError(
                f"{path} exists and holds something else; give another name, or pass replace=True"
            )
        write_whole(path, text)
        self._wrote[path.expanduser().resolve()] = text
        return path


class SaveBox:
    """A text field with a file name, and a button; a second press confirms a replacement."""

    def __init__(
        self,
        button: ipywidgets.Button,
        name: str,
        replaces: Callable[[str], bool],
        write: Callable[[str, bool], Path],
    ) -> None:
        """`write` gets the name and whether to replace; its errors are shown by the panel."""
        self.button, self._label = button, button.description
        wide = ipywidgets.Layout(max_width="100%")
        self.path = ipywidgets.Text(name, description="File", continuous_update=False, layout=wide)
        self.said = ipywidgets.HTML()
        self.box = ipywidgets.HBox(
            [self.path, button, self.said], layout=ipywidgets.Layout(flex_flow="row wrap")
        )
        self._replaces, self._write = replaces, write
        self._asked: str | None = None
        self.path.observe(lambda _: self._forget(), "value")

    def press(self) -> None:
        """Write the file; or ask first, if that would replace a file of somebody else."""
        name = self.path.value
        if self._asked != name and self._replaces(name):
            self._asked = name
            self.button.description = f"Replace {Path(name).name}?"
            self.button.button_style = "warning"
            self._say(f"! {name} exists and holds something else. Press again to replace it.")
            return
        path = self._write(name, self._asked == name)
        self._forget()
        self._say(f"✓ Saved to {path.resolve()}")

    def _forget(self) -> None:
        self._asked, self.button.description = None, self._label
        self.button.button_style = ""
        self.said.value = ""

    def _say(self, words: str) -> None:
        self.said.value = note(words)
