"""The two errors a user of Kinfold meets.

The command line turns `InputError` into exit status 2 and `RunError` into exit status 1, each with its
message as one line, so messages name the argument, the value it had, and what to do about it.
"""

import difflib
from collections.abc import Iterable

_SYNONYMS = {
    "learning_rate": "lr",
    "wd": "weight_decay",
    "beta1": "betas",
    "beta2": "betas",
    "epsilon": "eps",
}
"""What other libraries call what torch's optimizers take."""


class InputError(ValueError):
    """An argument, a file or a configuration that cannot be used as given."""


class RunError(RuntimeError):
    """A run that started from good input and could not be finished."""


def unknown(argument: str, value: object, known: Iterable[str]) -> InputError:
    """Returns the error for a name that is not in a table: it lists the table and the nearest entry.

    Args:
        argument: what the user set, as they know it, such as `"transfer"`.
        value: what they set it to.
        known: the names that would have been accepted.

    Example:
        >>> print(unknown("transfer", "amtoo", ["amto", "none"]))
        transfer: unknown name 'amtoo', did you mean 'amto'? Known: amto, none.
    """
    names = sorted(map(printable, known))
    alike = [name for name in names if name.casefold() == str(value).casefold()]
    alike += [name for name in names if name == _SYNONYMS.get(str(value))]
    near = alike or difflib.get_close_matches(str(value), names, n=1)
    hint = f", did you mean {near[0]!r}?" if near else "."
    return InputError(f"{argument}: unknown name {value!r}{hint} Known: {', '.join(names)}.")


def printable(text: str) -> str:
    r"""Returns the text with everything that could steer a terminal, or end a line, as an escape.

    Example:
        >>> printable("a\x1b[31mb\n")
        'a\\x1b[31mb\\n'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
