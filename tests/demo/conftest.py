"""A real Chromium for the demo's page, where there is one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

_CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
# No sandbox: in a container Chromium runs as root. The rest keeps it from asking the network for anything.
_ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Module scope, so that no test of another file runs beside Playwright's own event loop."""
    executable = next(filter(None, map(shutil.which, _CHROMIUM)), None)
    if executable is None:
        pytest.skip("there is no Chromium on this machine: `make test` installs one where it may")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=executable, args=list(_ARGUMENTS))
        yield launched
        launched.close()
