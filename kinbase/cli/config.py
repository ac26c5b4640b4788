"""The command that shows and sets what the terminal UI remembers."""

import json

import click

from kinbase.errors import UsageError


@click.command()
@click.argument("key", required=False)
@click.argument("value", required=False)
@click.option("--reset", is_flag=True, help="Back to the defaults: the file is removed.")
def config(key: str | None, value: str | None, reset: bool) -> None:
    """Show the settings and their file, or set KEY to VALUE: theme, sort, columns (with commas), keys.NAME.

    `kinbase config keys` lists the names of actions that can have other keys.
    """
    from dataclasses import asdict

    from kinbase.cli.console import say
    from kinbase.tui import settings

    path = settings.config_path()
    if reset:
        path.unlink(missing_ok=True)
        say(f"{path} is gone: the defaults hold")
        return
    if key == "keys" and value is None:
        from kinbase.tui.app import actions_with_keys

        for name, keys, what in actions_with_keys():
            click.echo(f"{name:<24}{keys:<24}{what}")
        return
    known = settings.load()
    if key is None:
        say(f"{path}{'' if path.exists() else ' (not there yet: these are the defaults)'}")
        for name, held in asdict(known).items():
            click.echo(f"{name} = {json.dumps(held, ensure_ascii=False)}")
        return
    if value is None:
        held = asdict(known)
        if key not in held:
            raise UsageError(f"there is no setting {key!r}: choose of {', '.join(held)}")
        click.echo(json.dumps(held[key], ensure_ascii=False))
        return
    if key.startswith("keys."):
        from kinbase.tui.app import actions_with_keys

        if key[5:] not in {name for name, _, _ in actions_with_keys()}:
            raise UsageError(f"no action is called {key[5:]!r}: `kinbase config keys` lists them")
    settings.change(known, key, value)
    settings.save(known)
    say(f"{key} is {value}")
