"""What focus and connectivity have in common: something is on or off, and listeners hear of the change."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from .subscribable import Subscribable

# Attaches to a source of events, which calls the function it gets; returns what detaches it, if anything does.
Attach: TypeAlias = Callable[[Callable[[bool], None]], Callable[[], None] | None]


class Switch(Subscribable[bool]):
    """A boolean with listeners, on at first.

    It can be set by hand, or by a source of events that is attached while anybody listens.
    """

    def __init__(self) -> None:
        super().__init__()
        self._on = True
        self._attach: Attach | None = None
        self._detach: Callable[[], None] | None = None
        self._attached = False

    def set_event_listener(self, attach: Attach) -> None:
        """Take changes from a source of events.

        Args:
            attach: Called with a function that takes the new value, as soon as somebody listens; returns what
                undoes it, called when nobody does any more or when another source takes its place.
        """
        self._stop()
        self._attach = attach
        if self.has_listeners():
            self._start()

    def _set(self, on: bool) -> None:  # noqa: FBT001 -- the value itself
        if on != self._on:
            self._on = on
            self._emit(on)

    def _on_subscribe(self) -> None:
        self._start()

    def _on_unsubscribe(self) -> None:
        if not self.has_listeners():
            self._stop()

    def _start(self) -> None:
        if self._attach is not None and not self._attached:
            self._attached = True
            self._detach = self._attach(self._set)

    def _stop(self) -> None:
        detach, self._detach, self._attached = self._detach, None, False
        if detach is not None:
            detach()
