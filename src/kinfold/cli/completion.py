"""`kinfold completion`: scripts by which a shell completes verbs, flags, and the names that flags take."""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from jsonargparse import ArgumentParser

from kinfold.cli.base import Command, Given
from kinfold.cli.schemas import names_in, schema_text

_OF_FILES = ("out", "config", "root")
"""Flags that take a path."""


@dataclass(frozen=True)
class Flag:
    """A flag of a verb.

    Attributes:
        name: such as `--batch-size`.
        help: what it is for.
        takes: whether it takes a value.
        words: values by name, or none that are known.
        files: whether a value is a path.
    """

    name: str
    help: str
    takes: bool
    words: tuple[str, ...]
    files: bool


@dataclass(frozen=True)
class Verb:
    """A verb: its name, what it does, its flags, and the words that may stand alone; files may, too."""

    name: str
    summary: str
    flags: tuple[Flag, ...]
    words: tuple[str, ...]


def verbs_of(commands: Mapping[str, Command]) -> list[Verb]:
    """Returns what there is to complete."""
    return [_verb(command) for command in commands.values()]


def _verb(command: Command) -> Verb:
    configured = command.name in ("train", "compare")
    schema = json.loads(schema_text(command.name if configured else "train"))
    flags, alone = [], []
    for action in command.parser()._actions:  # argparse has no public list of them
        if not action.option_strings:
            if action.dest in ("data", "name"):
                alone += names_in(schema, "data")
            alone += action.choices or ()
            continue
        words: list[str] = list(action.choices or ())
        if configured and action.dest in schema["properties"]:
            words = names_in(schema, action.dest)
        takes = action.nargs != 0
        files = action.dest in _OF_FILES
        help_text = "" if action.help in (None, argparse.SUPPRESS) else str(action.help)
        # Shells part words at colons; and the dashed form will do.
        known = tuple(word for word in words if ":" not in word)
        flags.append(
            Flag(action.option_strings[-1 if len(action.option_strings[0]) == 2 else 0], help_text, takes, known, files)
        )
    return Verb(command.name, command.summary, tuple(flags), tuple(word for word in alone if ":" not in word))


def bash(verbs: Sequence[Verb]) -> str:
    """Returns the script for bash."""
    cases = []
    for verb in verbs:
        for flag in verb.flags:
            if flag.takes:
                cases.append(f'        "{verb.name} {flag.name}") words={_quoted(flag.words)} ;;')
        names = _quoted([flag.name for flag in verb.flags])
        cases.append(f'        "{verb.name} "*) [[ $word == -* ]] && words={names} || words={_quoted(verb.words)} ;;')
    return "\n".join(
        [
            '# bash completion of kinfold: eval "$(kinfold completion bash)"',
            "_kinfold() {",
            '    local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" words=""',
            "    if ((COMP_CWORD == 1)); then",
            f"        words={_quoted([verb.name for verb in verbs])}",
            "    else",
            '        case "${COMP_WORDS[1]} $before" in',
            *cases,
            "        esac",
            "    fi",
            '    COMPREPLY=($(compgen -W "$words" -- "$word"))',
            "}",
            "complete -o default -F _kinfold kinfold  # where no word fits, files",
        ]
    )


def zsh(verbs: Sequence[Verb]) -> str:
    """Returns the script for zsh."""
    cases = []
    for verb in verbs:
        specs = []
        for flag in verb.flags:
            told = _escaped(flag.help)
            value = "_files" if flag.files or not flag.words else f"({' '.join(flag.words)})"
            specs.append(_quoted([f"{flag.name}[{told}]" + (f":value:{value}" if flag.takes else "")]))
        alone = f"names:name:({' '.join(verb.words)})"
        specs.append(_quoted([f'*: :{{_alternative "{alone}" "files:file:_files"}}']))
        cases.append(f"        {verb.name})\n            _arguments {' '.join(specs)} ;;")
    described = " ".join(_quoted([f"{verb.name}:{verb.summary}"]) for verb in verbs)
    return "\n".join(
        [
            "#compdef kinfold",
            '# zsh completion of kinfold: eval "$(kinfold completion zsh)", after compinit',
            "_kinfold() {",
            "    if ((CURRENT == 2)); then",
            f"        local -a verbs=({described})",
            "        _describe command verbs",
            "        return",
            "    fi",
            "    shift words",
            "    ((CURRENT--))",
            "    case $words[1] in",
            *cases,
            "    esac",
            "}",
            'if [[ $funcstack[1] == _kinfold ]]; then _kinfold "$@"; else compdef _kinfold kinfold; fi',
        ]
    )


def fish(verbs: Sequence[Verb]) -> str:
    """Returns the script for fish."""
    lines = ["# fish completion of kinfold: kinfold completion fish | source"]
    for verb in verbs:
        lines.append(f"complete -c kinfold -n __fish_use_subcommand -f -a {verb.name} -d {_fished(verb.summary)}")
        within = f"complete -c kinfold -n '__fish_seen_subcommand_from {verb.name}'"
        if verb.words:
            lines.append(f"{within} -a {_fished(' '.join(verb.words))}")
        for flag in verb.flags:
            words = f" -x -a {_fished(' '.join(flag.words))}" if flag.words else " -r -F" if flag.files else " -x"
            value = words if flag.takes else ""
            lines.append(f"{within} -l {flag.name.lstrip('-')}{value} -d {_fished(flag.help)}")
    return "\n".join(lines)


SHELLS: Mapping[str, Callable[[Sequence[Verb]], str]] = {"bash": bash, "zsh": zsh, "fish": fish}


def _quoted(words: Sequence[str]) -> str:
    """Words as one of bash or zsh."""
    return "'" + " ".join(words).replace("'", "'\\''") + "'"


def _fished(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _escaped(text: str) -> str:
    """Help as it stands between the brackets of zsh's `_arguments`."""
    for sign in "\\[]:":
        text = text.replace(sign, f"\\{sign}")
    return text


def _declare_completion(parser: ArgumentParser) -> None:
    parser.add_argument("shell", choices=[*SHELLS], metavar="|".join(SHELLS), help="which shell's script to print")


def completion_of(commands: Mapping[str, Command]) -> Command:
    """Returns the verb that prints the scripts.

    Args:
        commands: all other verbs.
    """

    def run(given: Given) -> str:
        return SHELLS[given["shell"]](verbs_of({**commands, own.name: own}))

    summary = "Prints a script by which a shell completes kinfold's words."
    own = Command("completion", summary, "|".join(SHELLS), _declare_completion, run)
    return own
