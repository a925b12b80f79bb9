"""Flags made from the declarations of `rowcast.settings`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from rowcast.settings import SETTINGS, Setting, Settings, load

Command = TypeVar("Command", bound=Callable[..., Any])


def settings_options(*names: str) -> Callable[[Command], Command]:
    """Give a command a flag for each setting named (without names: for all) and `--config`.

    The command takes them as `**flags` and resolves them with `settings_from`.
    """

    def decorate(command: Command) -> Command:
        for setting in reversed(SETTINGS):
            if not names or setting.name in names:
                command = _option(setting)(command)
        return click.option(
            "--config",
            "config",
            type=click.Path(path_type=Path, dir_okay=False),
            help="A TOML file of settings; without it ROWCAST_CONFIG, else ./rowcast.toml where it exists.",
        )(command)

    return decorate


def settings_from(flags: dict[str, Any]) -> Settings:
    """Resolve what `settings_options` collected; see `rowcast.settings.load`."""
    config = flags.pop("config", None)
    return load(flags, file=config)


def _option(setting: Setting) -> Callable[[Command], Command]:
    default = setting.kind.show(setting.default) or "none"
    text = f"{setting.help} [{setting.environment[-1]}; default: {default}]"
    if isinstance(setting.default, bool):
        switch = setting.flags[0]
        return click.option(f"{switch}/--no-{switch[2:]}", setting.name, default=None, help=text)
    return click.option(
        *setting.flags, setting.name, metavar=setting.kind.word.upper(), default=None, help=text
    )
