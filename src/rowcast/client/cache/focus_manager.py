"""Whether the user is looking. Whoever owns the window says so; nothing here guesses."""

from __future__ import annotations

from .switch import Switch


class FocusManager(Switch):
    """Focused until told otherwise: by `set_focused`, or by a source given to `set_event_listener`.

    Textual's AppFocus and AppBlur, Qt's applicationStateChanged or the connect and disconnect of a NiceGUI client are
    such sources.
    """

    def set_focused(self, focused: bool) -> None:  # noqa: FBT001 -- the value itself
        """Say whether the application is visible. Coming back refetches what is stale and resumes what is paused."""
        self._set(focused)

    def is_focused(self) -> bool:
        return self._on
