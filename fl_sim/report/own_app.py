"""What the report says of an audit of one's own app: what was audited, and what is vouched for.

Such an audit has no scenario, and unless a judge was given no truth either. Then nothing is right
or wrong on the page: it shows what the attacks vouch for, and why they don't for the rest.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fl_sim.leakage.headline import strongest
from fl_sim.leakage.leaks import Record
from fl_sim.leakage.summary import AttackSummary
from fl_sim.wording import NONE, count, listing, number

CLIENTS_SHOWN, CLASSES_SHOWN = 50, 12


@dataclass(frozen=True)
class Holding:
    """What the server holds of a client for certain: by the best attack, over all rounds."""

    client: int
    examples: int
    labels: int
    images: int
    classes: str


def holdings(records: Sequence[Record], summaries: Sequence[AttackSummary]) -> list[Holding]:
    """Return what the attack that vouches for most holds of each client; nobody is left out."""
    if not summaries:
        return []
    best = strongest(summaries, has_truth=False).attack
    of_client: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        if record.get("attack") == best and record.get("client") is not None:
            of_client[record["client"]].append(record)
    found = [_holding(client, lines) for client, lines in sorted(of_client.items())]
    return found if any(line.labels or line.images for line in found) else []


def _holding(client: int, records: Sequence[Record]) -> Holding:
    vouched = [record for record in records if record.get("label_status") == "RECOVERED"]
    images = sum(record.get("image_status") == "RECOVERED" for record in records)
    classes = Counter(filter(None, map(_class, vouched)))
    shown = listing([f"{name} × {times}" for name, times in classes.most_common()], CLASSES_SHOWN)
    return Holding(client, len(records), len(vouched), images, shown)


def _class(record: Record) -> str | None:
    """Say which class a label names, by its name where it has one, of a mixed one both."""
    if record.get("label_class_name"):
        return str(record["label_class_name"])
    classes = [record.get(key) for key in ("label_class", "label_second_class")]
    return " + ".join(str(k) for k in classes if k is not None) or None


def facts(run: Mapping[str, Any], rounds: Sequence[Record]) -> list[tuple[str, list[str]]]:
    """Describe what was audited, as terms with one or more descriptions."""
    about = run["scenario"]
    model, client = about.get("model") or {}, dict(about.get("client") or {})
    names = about.get("class_names")
    size = " × ".join(map(str, model.get("input_shape") or [])) or NONE
    classes = [f"{len(names)} classes: {', '.join(names)}"] if names else []
    steps, batch = client.pop("local_steps", 1), client.pop("batch_size", None)
    epochs = client.pop("local_epochs", None)
    passes = count(epochs, "local epoch") if epochs else count(steps, "local step")
    training = f"{passes}, unless a client reports another number"
    options = [
        key.replace("_", " ") if value is True else f"{key.replace('_', ' ')} {value}"
        for key, value in client.items()
        if value
    ]
    attacks = [
        f"{' + '.join(filter(None, (line.get('label'), line.get('image'))))}, {line['attacker']}"
        for line in about.get("attack") or []
    ]
    versions = [f"{name} {version}" for name, version in (run.get("versions") or {}).items()]
    parameters = count(model.get("parameters", 0), "parameter")
    return [
        ("Model", [f"{model.get('name')}, {parameters}", f"images of {size}", *classes]),
        (
            "Training, as the server knows it",
            [f"batches of {batch or 'a size that is not told'}", training, ", ".join(options)],
        ),
        ("Server", [str((about.get("server") or {}).get("strategy"))]),
        ("Rounds", [number(len(rounds))]),
        ("Defenses", [str(about.get("defenses"))]),
        ("Attacks", attacks),
        ("Truth", ["told by a judge, to score only" if about.get("has_judge") else "not known"]),
        ("Seed", [str(about.get("seed"))]),
        ("Started", [str(run.get("started", NONE)).replace("T", " ").replace("+00:00", " UTC")]),
        ("Versions", [", ".join(versions) or NONE]),
    ]
