"""Whether the network can be reached, as far as anybody has said."""

from __future__ import annotations

from .switch import Switch


class OnlineManager(Switch):
    """Online until told otherwise: by `set_online`, or by a source given to `set_event_listener`."""

    def set_online(self, online: bool) -> None:  # noqa: FBT001 -- the value itself
        """Say whether the network can be reached. Coming back resumes mutations first, then queries."""
        self._set(online)

    def is_online(self) -> bool:
        return self._on
