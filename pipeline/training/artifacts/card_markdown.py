"""Model card as a Markdown page.

Its sections follow Mitchell et al. 2019, Model Cards for Model Reporting (FAT*, section 4), as far as the card holds
their content. Everything comes from the card, so the page can be written again from a checkpoint alone.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass

import yaml

from pipeline.model import ModelCard
from pipeline.text import markdown, printable, printable_lines
from pipeline.training.artifacts.card_facts import PARTS, CardFacts, as_number, join_names
from pipeline.training.artifacts.card_limits import known_limits
from pipeline.training.records import TrainReport

SCORES = {"iou": "IoU", "f1": "F1", "precision": "precision", "recall": "recall", "accuracy": "accuracy"}
"""Metrics of a class in the order shown, and their names."""


def card_page(
    card: ModelCard,
    *,
    checkpoint: str = "model.safetensors",
    report: TrainReport | None = None,
    pictures: Sequence[str] = (),
) -> str:
    """The model card's page in Markdown.

    Args:
        card: of the trained network; facts missing from its `training` are left out.
        checkpoint: name of the checkpoint, for the title and the command.
        report: adds the duration of the run and the reason for its end.
        pictures: addresses of PNGs, relative to the page; their file names become the captions.
    """
    facts = CardFacts(card=card)
    sections = {
        f"Model card: {markdown(checkpoint)}": _summary(card),
        "Use": _use(card, checkpoint),
        "Model": _details(facts, report),
        "Intended use": _intended(card),
        "Data": _data(facts),
        "Metrics": _metrics(facts),
        "Calibration": _calibration(facts),
        "Limits": (f"- {sentence}" for sentence in known_limits(card)),
        "Pictures": _pictures(pictures),
        "Settings": _settings(facts),
    }
    blocks = [(title, list(lines)) for title, lines in sections.items()]
    written = [
        "\n".join([f"{'##' if k else '#'} {title}", "", *lines]) for k, (title, lines) in enumerate(blocks) if lines
    ]
    return "\n\n".join(written) + "\n"


def _summary(card: ModelCard) -> Iterator[str]:
    names = [name for _, _, name in card.foreground]
    scale = f" of {card.resolution_m:g} m pixels" if card.resolution_m else ""
    yield f"Finds **{join_names(names)}** in georeferenced scenes{scale} with {_band_names(card)}."


def _use(card: ModelCard, checkpoint: str) -> Iterator[str]:
    yield "```sh"
    yield f"scenemill segment SCENE.tif --model {_verbatim(printable(shlex.quote(checkpoint)))} --out OUT"
    yield "```"
    if card.resolution_m:
        yield ""
        yield "For scenes of another pixel side add `--set reading.resolution_m=model`."


def _details(facts: CardFacts, report: TrainReport | None) -> Iterator[str]:
    card = facts.card
    versions = ", ".join(f"{markdown(name)} {markdown(value)}" for name, value in facts.table("versions").items())
    context = f"{card.receptive_field} px" if card.receptive_field else "the whole tile"
    rows: dict[str, object] = {
        "network": markdown(facts.at("settings", "network", "name") or ""),
        "classes": join_names(card.classes),
        "decision": _decision(card),
        "input": f"{_band_names(card)}{f', {card.dtype}' if card.dtype else ''}",
        "ground pixel": f"{card.resolution_m:g} m" if card.resolution_m else "any",
        "context of a pixel": context,
        "seed": markdown(seed if (seed := facts.at("seed")) is not None else facts.at("settings", "seed") or ""),
        "versions": versions,
    }
    if report is not None:
        rows["training"] = _training(report)
        rows["SHA-256"] = f"`{report.sha256}`"
    yield from _table(("", ""), ((name, value) for name, value in rows.items() if value not in ("", None)))


def _decision(card: ModelCard) -> str:
    if card.activation == "softmax":
        rest = f"; {markdown(card.background)} means none of the others" if card.background else ""
        return f"exclusive classes: the likeliest one{rest}"
    return f"independent classes: probability of at least {card.threshold:.3g}"


def _training(report: TrainReport) -> str:
    why = {
        "finished": "all epochs were run",
        "patience": "validation no longer improved",
        "time": "the time was up",
        "diverged": "the loss diverged, the best epoch before was kept",
    }
    ended = f"epoch {report.best_epoch} of {len(report.history)} kept; ended because {why[report.stopped]}"
    late = "; the last epoch was the best: more might help" if report.best_epoch == len(report.history) else ""
    return f"{ended}{late}; {report.seconds / 60:.1f} min"


def _intended(card: ModelCard) -> Iterator[str]:
    names = join_names([name for _, _, name in card.foreground])
    yield f"- For: maps of {names} in scenes like those it was trained on, in bands, pixel side, season and land."
    yield "- For people who can check the result against the scene or against labels (`scenemill evaluate`)."
    yield "- Not for: decisions about single objects or owners that no person checks; land and sensors it has not seen."


def _data(facts: CardFacts) -> Iterator[str]:
    kinds = {"scenes": "whole scenes", "blocks": "blocks of scenes"}
    rows = []
    scenes = facts.texts("scenes")
    if scenes:
        rows.append(("training", f"{len(scenes)}: {join_names(scenes)}", ""))
    for part in PARTS:
        held = facts.texts(part, "scenes")
        if held:
            kind = facts.at(part, "kind") or facts.at("validation", "kind")
            count = facts.number(part, "parts")
            rows.append(
                (part, f"{len(held)}: {join_names(held)}", f"{count or len(held):.0f} {kinds.get(str(kind), 'parts')}")
            )
    if rows:
        yield from _table(("part", "scenes", "held out"), rows)
    yield from _labels(facts)


def _labels(facts: CardFacts) -> Iterator[str]:
    labels = {name: as_number(value) for name, value in facts.table("labels").items()}
    counts = [f"{value:,.0f} {markdown(name)}" for name, value in labels.items() if value is not None]
    if counts:
        yield f"\nLabels: {', '.join(counts)}."
    shares = [
        (markdown(k), v) for k, value in facts.table("class_share").items() if (v := as_number(value)) is not None
    ]
    if shares:
        yield f"\nShare of the labelled training pixels: {', '.join(f'{name} {share:.2%}' for name, share in shares)}."


def _metrics(facts: CardFacts) -> Iterator[str]:
    parts = [part for part in PARTS if facts.scores(part)]
    if not parts:
        return
    rows = [(part, *(_score(facts.scores(part).get(key)) for key in ("iou", "f1", "bce"))) for part in parts]
    yield from _table(("part", "mean IoU", "mean F1", "cross-entropy (nats)"), rows)
    yield "\nMeans over classes; pixels that are nodata or unlabelled do not count. Validation chose the epoch, the"
    yield "threshold and the temperature; nothing was chosen on test. `scenemill evaluate` adds confidence intervals."
    for part in parts:
        classes = facts.class_scores(part)
        if classes:
            yield f"\nEach class on {part}:\n"
            lines = ((markdown(name), *(_score(scores.get(key)) for key in SCORES)) for name, scores in classes.items())
            yield from _table(("class", *SCORES.values()), lines)


def _calibration(facts: CardFacts) -> Iterator[str]:
    temperature = facts.number("calibration", "temperature")
    rows = [(part, *map(_score, facts.ece(part))) for part in PARTS if facts.ece(part) != (None, None)]
    if temperature is not None:
        yield f"Logits are divided by the temperature {temperature:.4g}, fitted on validation (Guo et al. 2017)."
    if rows:
        yield "\nExpected calibration error: how far probabilities and observed shares lie apart, on average.\n"
        yield from _table(("part", "before", "after"), rows)


def _pictures(pictures: Sequence[str]) -> Iterator[str]:
    for address in pictures:
        name = address.rsplit("/", 1)[-1].removesuffix(".png")
        yield f"![{markdown(name)}](<{address}>)\n"


def _settings(facts: CardFacts) -> Iterator[str]:
    settings = facts.table("settings")
    if not settings:
        return
    changed = [(f"`{key}`", f"`{_code(value)}`", f"`{_code(old)}`") for key, value, old in _changes(settings)]
    if changed:
        yield from _table(("setting", "here", "default"), changed)
    else:
        yield "All settings have their defaults."
    yield "\n<details><summary>All settings</summary>\n\n```yaml"
    text = yaml.safe_dump(json.loads(json.dumps(settings)), sort_keys=False, allow_unicode=True)
    yield _verbatim(text.rstrip())
    yield "```\n\n</details>"


def _changes(settings: Mapping[str, object]) -> Iterator[tuple[str, object, object]]:
    """`(key, value, default)` of the settings that differ from the current defaults."""
    from pipeline.training.settings.spec import TrainSpec  # imports torch

    for path, default in _defaults(TrainSpec()):
        found: object = settings
        for key in path:
            found = found.get(key, _MISSING) if isinstance(found, Mapping) else _MISSING
        if found is not _MISSING and found != json.loads(json.dumps(default)):
            yield ".".join(path), found, default


_MISSING = object()


def _defaults(spec: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    for each in fields(spec):  # type: ignore[arg-type]
        value = getattr(spec, each.name)
        if is_dataclass(value):
            yield from _defaults(value, (*path, each.name))
        else:
            yield (*path, each.name), value


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(map(str, row))} |"


def _band_names(card: ModelCard) -> str:
    return f"{len(card.bands)} band{'s' if len(card.bands) > 1 else ''} ({join_names(card.bands)})"


def _score(value: object) -> str:
    number = as_number(value)
    return "" if number is None else f"{number:.3f}"


def _code(value: object) -> str:
    return _verbatim(json.dumps(value, ensure_ascii=False)).replace("|", "\\|")


def _verbatim(text: str) -> str:
    """Text inside a block or span of code, which it cannot end."""
    return printable_lines(text).replace("`", "'")
