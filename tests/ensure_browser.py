"""Make sure that a Chromium is there for the browser tests; says what it installs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys


def main() -> int:
    if shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome"):
        return 0
    if not (shutil.which("apt-get") and os.geteuid() == 0):
        print("rowcast: no Chromium here, and no right to install one: the browser tests will be skipped")
        return 0
    print("rowcast: installing Debian's chromium for the browser tests (apt-get)", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-qq"], check=False, env=environment)
    return subprocess.run(
        ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium", "fonts-dejavu-core"],
        check=False,
        env=environment,
        stdout=subprocess.DEVNULL,
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
