"""Makes a page for the weights of each model and tag: the lines that load them, file, licences, citation, results."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from zoo.commands.printing import fact_lines, input_facts, training_facts
from zoo.fetching import plain_addresses
from zoo.record import LAYERS, RemoteFile
from zoo.registry import model_info
from zoo_site import cards, words
from zoo_site.catalogue import Evidence, Item, items
from zoo_site.citations import bibtex

_EMPTY = ("-", "")
_DEFAULT = "The name without a tag, `{name}`, loads these weights."
_BY_TAG = "They are loaded by their full name alone."
_NOT_HOSTED = """\
:::{{admonition}} These weights cannot be downloaded: {state}
:class: warning

{notes}

If you have the file: `zoo import {full} FILE`, or `zoo.load_model("{model}", checkpoint="FILE")`.
:::
"""


def pages() -> dict[str, str]:
    """Return the text of the page of all weights on record."""
    return {f"weights/{item.name}.md": _page(item) for item in items()}


def _page(item: Item) -> str:
    parts = [_lead(item), _load(item), _file(item), _input(item), _licences(item), _cite(item), _results(item)]
    return "\n".join([*parts, _made(item)])


def _lead(item: Item) -> str:
    each = item.listed
    known = _DEFAULT.format(name=each.name) if each.default else _BY_TAG
    whose = f"Trained by {'this zoo' if each.trained_by == 'zoo' else 'the authors'}."
    rows = {
        "takes": words.takes(each),
        "gives": words.gives(each),
        "untrained": each.fresh,
        "network": words.parameters(each.parameters),
        "file": words.size(each.bytes),
        "state": words.STATES[each.state],
        "card": f"[{cards.title(item.family)}](../cards/{item.family}.md)",
    }
    text = f"# {item.name}\n\n{each.summary}. {whose} {known}\n\n{_table(rows)}"
    notes = item.record.notes
    if item.loads:
        return f"{text}\n{_linked(notes)}\n" if notes else text
    state = words.STATES[each.state]
    return f"{text}\n{_NOT_HOSTED.format(state=state, notes=_linked(notes), full=item.name, model=each.name)}"


def _load(item: Item) -> str:
    """The lines to copy; of weights that cannot be had, with the user's own file."""
    if item.loads:
        model, transform = f'"{item.name}"', f'"{item.name}"'
        before = [f"zoo download {item.name}"]
    else:
        model, transform = f'"{item.name}", checkpoint="FILE"', f'"{item.name}"'
        before = [f"zoo import {item.name} FILE"]
    code = ["import zoo", "", f"model = zoo.load_model({model})", f"transform = zoo.load_transform({transform})"]
    shell = [f"$ {command}" for command in (*before, f"zoo info {item.name}")]
    return "\n".join(["## Load", "", "```python", *code, "```", "", "```console", *shell, "```", ""])


def _file(item: Item) -> str:
    record = item.record
    rows = {
        "from": _sources(record),
        "bytes": "not published" if record.bytes is None else f"{record.bytes:,}",
        **_digests(record),
        "format": _linked(record.format),
        "written by": _linked(record.writer),
    }
    text = f"## File\n\n{_table(rows)}"
    for name, asset in record.assets.items():
        rows = {"from": _sources(asset), "bytes": f"{asset.bytes:,}" if asset.bytes else "not published"}
        text += f"\nWith it comes `{name}`:\n\n{_table({**rows, **_digests(asset)})}"
    return text


def _digests(file: RemoteFile) -> dict[str, str]:
    """The digests of a file, or why it has none."""
    found = {kind: f"`{digest}`" for kind, digest in file.digests.items()}
    note = _linked(getattr(file, "sha256_note", ""))
    if "sha256" not in found:
        return {"sha256": note or "not published", **found}
    return {**found, "on whose word": note}


def _sources(file: RemoteFile) -> str:
    if any(source.startswith("package:") for source in file.sources):
        return "the package itself: nothing is downloaded"
    return "<br>".join(f"<{address}>" for address in plain_addresses(file)) or "nowhere"


def _input(item: Item) -> str:
    facts = input_facts(model_info(item.name).input)
    rows = {key.replace("_", " "): _code(fact_lines(value)) for key, value in facts.items()}
    return f"## Input\n\nWhat `zoo.load_transform` makes of an image, by `zoo info`:\n\n{_table(rows)}"


def _code(lines: Iterable[str]) -> str:
    said = ", ".join(lines)
    return "" if said in _EMPTY else f"`{said}`"


def _licences(item: Item) -> str:
    record = item.record
    said = [f"- {words.licence(record.licences, use, record.verdict(use))}" for use in words.USES]
    head = ["| | commercial use | passing on | licence |", "|---|---|---|---|"]
    rows = [_licence_row(layer, record.licences.get(layer, {})) for layer in LAYERS]
    return "\n".join(["## Licences", "", *said, "", *head, *rows, "", "Not legal advice: read the licences.", ""])


def _licence_row(layer: str, terms: Mapping[str, Any]) -> str:
    verdicts = (words.VERDICTS[terms.get(use, "unknown")] for use in words.USES)
    words_of = filter(None, (terms.get("licence", "not stated"), terms.get("note")))
    cells = [*verdicts, "<br>".join(map(_linked, words_of))]
    return f"| {words.LAYER_NAMES[layer]} | {' | '.join(map(_cell, cells))} |"


def _cite(item: Item) -> str:
    citation = item.record.citation
    return f"## Cite\n\n{_linked(citation)}\n\n```bibtex\n{bibtex(citation)}\n```\n"


def _results(item: Item) -> str:
    """What the card has of results of these weights, in full; of others of the recipe, where it stands."""
    texts = [_evidence(one, item.family) for one in item.evidence]
    return "\n".join(["## Results", "", *(texts or ["The card has none.", ""])])


def _evidence(one: Evidence, family: str) -> str:
    link = f"../cards/{family}.md#{one.section.anchor}"
    if not one.of_these:
        return f"Not of these weights: [{one.label}]({link}), as the card says.\n"
    depth = max(0, 3 - one.section.level)
    return f"[{one.section.title}]({link}), as the card has it:\n\n{cards.linked(one.section.body, family, depth)}\n"


def _made(item: Item) -> str:
    facts = training_facts(item.record.training_ids)
    images = {"training list": facts} if isinstance(facts, str) else {f"training {key}": v for key, v in facts.items()}
    known = {**item.record.provenance, **images}
    rows = {key.replace("_", " "): _linked(", ".join(fact_lines(value))) for key, value in known.items()}
    return f"## How they were made\n\n{_table(rows)}"


def _table(rows: Mapping[str, str]) -> str:
    """Facts beside their names, without those that are empty."""
    lines = [f"* - {name}\n  - {value}" for name, value in rows.items() if value not in _EMPTY]
    return "\n".join(["```{list-table}", ":stub-columns: 1", ":class: zoo-facts", "", *lines, "```", ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _linked(text: str) -> str:
    """A text of the manifest as Markdown: addresses are links, and no sign of it is taken for a mark."""
    plain = re.sub(r"`[^`]*`|[*_<>\[\]]", lambda found: found[0] if found[0][0] == "`" else f"\\{found[0]}", text)
    return re.sub(r"https?://[^\s,;()]*[^\s,;().:]", lambda found: f"<{found[0].replace(chr(92), '')}>", plain)
