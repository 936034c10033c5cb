"""`kinfold train`."""

from contextlib import nullcontext
from pathlib import Path

from jsonargparse import ArgumentParser

from kinfold.cli.base import (
    Command,
    Given,
    Json,
    give_up_empty,
    json_text,
    listener,
    new_folder,
    number,
    scored,
    source_of,
)
from kinfold.cli.keys import KEYS, declare_keys, defaults, interrupted, printed_instead, reading, runnable
from kinfold.tracking.progress import LiveProgress, print_message, printable


def _declare_train(parser: ArgumentParser) -> None:
    declare_keys(parser, KEYS, defaults())
    parser.add_argument("--out", metavar="DIR", help="run directory (default: runs/<data>-<model>-<n>)")
    parser.add_argument("--json", action="store_true", help="print result.json alone")


def _train(given: Given) -> str:
    printed = printed_instead(TRAIN, KEYS, defaults(), given)
    if printed is not None:
        return printed
    chosen = runnable(TRAIN, KEYS, given)  # and only then what imports torch
    from kinfold.files import jsonable
    from kinfold.fitting import fit

    folder = None if given["out"] is None else Path(given["out"])

    def out(config: Given) -> Path:
        nonlocal folder
        model = config["model"]
        structure = model if isinstance(model, str) else str(model.get("name") or model.get("class_path"))
        folder = new_folder(source_of(config["data"]), structure)
        return folder

    try:
        with (
            reading("train", given),
            listener(given["quiet"], LiveProgress, lambda: nullcontext(print_message)) as listen,
            chosen.naming_lines(),
        ):
            result = fit(**chosen.values, out=folder or out, resume=given["resume"], listen=listen)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(interrupted("train", folder, chosen.values)) from None
    finally:
        give_up_empty(given, folder)
    said = jsonable(result.to_json())
    assert folder is not None  # named above, or by `out`
    return json_text(said) if given["json"] else _summary(said, folder)


_SELECTED_BY = {
    "mean": "mean over {} validation sets",
    "worst": "worst of {} validation sets",
    "rank": "mean rank over {} validation sets",
    "lower": "lower confidence bound over {} validation sets",
}


def _summary(said: Json, folder: Path) -> str:
    """What `train` prints of a result.json: the estimate first."""
    from kinfold.report import picked_words

    selected, transfers, cost = said["selected"], said["transfers"], said["cost"]
    metric, estimate = said["scores"]["metric"], said["estimate"]
    if estimate is None:
        first = "no clean estimate: holdout=0"
    else:
        first = f"{scored(estimate)} on {estimate['rows']} sealed rows, {'clean' if estimate['clean'] else 'not clean'}"
    distilled = selected["kind"] == "distilled"
    score = number("rank" if selected["criterion"] == "rank" else metric, selected["score"])
    by = _SELECTED_BY[selected["criterion"]].format(said["tasks"])
    but = "says little, since it trained on their rows" if distilled else "optimistic, since it was selected by"
    epochs = f"{said['epochs_run']} epochs{' of the tasks' if distilled else ''}"
    rows = {
        "selected": picked_words(said),
        "validation score" if distilled else "selection score": f"{score}, {by}; {but}",
        "transfers": f"{transfers['accepted']} accepted of {transfers['proposed']} proposed",
        "engine": f"{said['engine']} on {said['device']}, {said['precision']}",
        "time": f"{cost['wall_seconds']:.1f} s, {epochs}, stopped by {said['stopped']}",
        "run": str(folder),
        "report": str(folder / "report.html"),
    }
    width = max(map(len, rows)) + 2
    return "\n".join([printable(first), *(f"{name:{width}}{printable(value)}" for name, value in rows.items())])


TRAIN = Command("train", "Trains T networks on T splits and keeps the best one.", "DATA", _declare_train, _train)
