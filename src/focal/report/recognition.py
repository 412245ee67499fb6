"""What the predictions of a run say: accuracy of each class, confusions, and the worst mistakes with their pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Optional

from focal.errors import UserError
from focal.predictions import NO_CLASS, Predictions
from focal.report.charts import matrix_chart
from focal.report.mistakes import class_accuracies, confused_pairs, confusion_matrix, worst_mistakes
from focal.report.pictures import ValPictures
from focal.report.runs import Run, shown_value
from focal.report.tables import number

MOST_CLASSES = 50  # that are all listed, and shown as a matrix
LISTED_CLASSES = 20  # from either end if there are more
LISTED_PAIRS = 20
PICTURES = 24


class ClassTable(NamedTuple):
    """Accuracy per class of the runs that have the same classes.

    Attributes:
        runs: their names.
        rows: (class, images, per cent of each run), the lowest mean first.
        left_out: number of classes between the two halves of `rows`, which are then the ends of the list.
    """

    runs: list[str]
    rows: list[tuple[str, int, list[float]]]
    left_out: int


def class_tables(runs: Sequence[Run]) -> list[ClassTable]:
    """One table for all runs that were evaluated on the same images of the same classes."""
    groups: dict[Any, list[tuple[Run, Predictions]]] = {}
    for run in runs:
        if run.predictions is not None:
            key = (run.predictions.class_names, run.predictions.labels.tobytes())
            groups.setdefault(key, []).append((run, run.predictions))
    tables = []
    for group in groups.values():
        names = group[0][1].class_names
        columns = [class_accuracies(predictions) for _, predictions in group]
        rows = [
            (names[same[0].label], same[0].images, [accuracy.percent for accuracy in same]) for same in zip(*columns)
        ]
        rows.sort(key=lambda row: (sum(row[2]), row[0]))
        left_out = len(rows) - 2 * LISTED_CLASSES if len(rows) > MOST_CLASSES else 0
        if left_out:
            rows = rows[:LISTED_CLASSES] + rows[-LISTED_CLASSES:]
        tables.append(ClassTable([run.name for run, _ in group], rows, left_out))
    return tables


class Mistakes(NamedTuple):
    """What one run gets wrong.

    Attributes:
        run: its name.
        made_by: which weights, in words.
        wrong, images: how many of how many.
        pairs: (class, taken for, count, per cent of the class).
        matrix: confusion matrix as SVG; empty if there are too many classes.
        wide: whether it needs the whole width of the page.
        pictures: the worst mistakes.
        note: why there are no pictures; empty if there are.
    """

    run: str
    made_by: str
    wrong: int
    images: int
    pairs: list[tuple[str, str, int, float]]
    matrix: str
    wide: bool
    pictures: list[dict[str, Any]]
    note: str


def mistakes(run: Run, data_folder: Optional[str]) -> Mistakes:
    """Confusions and worst mistakes of a run that has left its predictions."""
    predictions = run.predictions
    assert predictions is not None, "only runs with predictions have mistakes"
    names = predictions.class_names
    pairs = [
        (names[pair.label], names[pair.predicted], pair.count, pair.percent)
        for pair in confused_pairs(predictions, LISTED_PAIRS)
    ]
    matrix = matrix_chart(confusion_matrix(predictions), names) if 1 < len(names) <= MOST_CLASSES else ""
    worst, note = worst_mistakes(predictions, PICTURES).tolist(), ""
    source: Optional[ValPictures] = None
    folder = data_folder or str(run.settings.get("data_url", ""))
    try:
        source = ValPictures(folder, predictions) if worst else None
    except UserError as error:
        note = f"The pictures are missing: {_without_folders(str(error), folder)}. Give --data_url DATA."
    return Mistakes(
        run=run.name,
        made_by=_made_by(predictions),
        wrong=int((~predictions.correct).sum()),
        images=len(predictions.labels),
        pairs=pairs,
        matrix=matrix,
        wide=len(names) > 15,
        pictures=[_mistake(predictions, position, source) for position in worst],
        note=note,
    )


def _without_folders(message: str, folder: str) -> str:
    return message.replace(folder, shown_value(folder)) if folder else message


def _made_by(predictions: Predictions) -> str:
    source = predictions.source
    of = f"epoch {source['epoch']}" if "epoch" in source else str(source.get("checkpoint", "an unnamed checkpoint"))
    top1 = number(source.get("top1"), 2)
    return f"{source.get('weights', 'raw')} weights of {of}, top-1 {top1} %"


def _mistake(predictions: Predictions, position: int, source: Optional[ValPictures]) -> dict[str, Any]:
    """One wrong image: its picture, name, class and what it was taken for."""
    names = predictions.class_names
    taken_for = [
        (names[label], 100 * probability)
        for label, probability in zip(
            predictions.classes[position].tolist(), predictions.probabilities[position].tolist()
        )
        if label not in (NO_CLASS, predictions.labels[position])
    ]
    return {
        "picture": source.picture(position) if source is not None else None,
        "name": predictions.names[position],
        "label": names[int(predictions.labels[position])],
        "label_percent": 100 * float(predictions.label_probabilities[position]),
        "taken_for": taken_for[:2],
    }
