"""Makes the catalogue: a card in HTML for all weights of all models, which a few lines of script filter and sort."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from zoo.commands.listing import Listed, list_weights
from zoo.entry import ANATOMIES, MODALITIES, TASKS
from zoo.record import WeightsFile
from zoo.registry import get_entry, list_models, resolve
from zoo_site import cards, words

_HEAD = """\
# Catalogue

All weights on record, by model and tag, as `zoo list` and `zoo info` print them; the results are those of the
[cards](cards/index.md). A star marks the weights that the name without a tag loads.

"""
_TASK_NAMES = {"encoder": "features", "segmentation": "segmentation", "restoration": "restoration"}
_ORDERS = {
    "name": "as listed",
    "bytes": "smallest file first",
    "parameters": "smallest network first",
    "width": "fewest features first",
}


@dataclass(frozen=True)
class Evidence:
    """Where a card has results that bear on some weights."""

    label: str
    section: cards.Section
    of_these: bool
    """Whether the results are of these weights; else they are of others that the same recipe trained."""


@dataclass(frozen=True)
class Item:
    """Weights of a model, with all that is known of them."""

    listed: Listed
    record: WeightsFile

    @property
    def name(self) -> str:
        """`MODEL.TAG`."""
        return f"{self.listed.name}.{self.listed.tag}"

    @property
    def family(self) -> str:
        """Whose card it is on."""
        return get_entry(self.listed.name).family

    @property
    def loads(self) -> bool:
        """Whether anybody can load it today, without asking."""
        return self.listed.available

    @property
    def evidence(self) -> list[Evidence]:
        """What the card has of results, as far as it bears on these weights."""
        return [found for section in cards.results(self.family) if (found := self._evidence(section))]

    def _evidence(self, section: cards.Section) -> Evidence | None:
        if section.tag:
            return Evidence("Measured by this zoo", section, True) if section.tag == self.listed.tag else None
        if section.heading.startswith("Tried on"):
            return Evidence(f"The recipe, {section.title[0].lower()}{section.title[1:]}", section, False)
        return Evidence(section.title, section, True) if self.listed.trained_by == "authors" else None


def items() -> list[Item]:
    """All weights on record, as `zoo list` has them on a machine with connections, an empty cache and no policy."""
    return [
        Item(each, resolved)
        for each in list_weights(list_models())
        if (resolved := resolve(f"{each.name}.{each.tag}").record) is not None
    ]


def page() -> str:
    """Return the page."""
    found = items()
    toctree = ["```{toctree}", ":hidden:", "", *(f"weights/{item.name}" for item in found), "```"]
    listed = "\n".join(map(_card, found))
    html = f'{_form(found)}\n<ul class="zoo-cards" id="zoo-cards" role="list">\n{listed}\n</ul>'
    return f"{_HEAD}```{{raw}} html\n{html}\n```\n\n{chr(10).join(toctree)}\n"


def _form(found: list[Item]) -> str:
    """What is asked; the script shows it, so that nobody sees a form that does nothing."""
    anatomies = [anatomy for anatomy in ANATOMIES if any(item.listed.anatomy == anatomy for item in found)]
    choices = [
        _select("modality", "Modality", {m: words.MODALITY_NAMES[m] for m in MODALITIES}, "any"),
        _select("anatomy", "Part of the body", {a: "any part" if a == "any" else a for a in anatomies}, "all"),
        _select("task", "Gives", {t: _TASK_NAMES[t] for t in TASKS}, "anything"),
        _select("dimension", "Images", {"2": "2D", "3": "3D"}, "2D and 3D"),
        _box("available", "loads today"),
        _box("commercial", "commercial use allowed"),
        '<label>Search <input type="search" name="text" autocomplete="off" size="14"></label>',
        _select("order", "Order", {k: v for k, v in _ORDERS.items() if k != "name"}, _ORDERS["name"]),
        '<button type="reset">Show all</button>',
    ]
    count = f'<p id="zoo-count" role="status">{len(found)} of {len(found)} weights</p>'
    return f'<form id="zoo-filter" hidden aria-label="Filter the catalogue">\n{chr(10).join(choices)}\n</form>\n{count}'


def _select(name: str, label: str, options: dict[str, str], none: str) -> str:
    inner = "".join(f'<option value="{escape(value)}">{escape(text)}</option>' for value, text in options.items())
    return f'<label>{label} <select name="{name}"><option value="">{none}</option>{inner}</select></label>'


def _box(name: str, label: str) -> str:
    return f'<label><input type="checkbox" name="{name}" value="yes"> {label}</label>'


def _card(item: Item) -> str:
    """One card. What is filtered and sorted by stands in its `data-` attributes."""
    each = item.listed
    data = {
        "name": item.name,
        "modality": " ".join(each.modalities),
        "anatomy": each.anatomy,
        "task": " ".join(each.tasks),
        "dimension": each.dimension,
        "available": "yes" if item.loads else "no",
        "commercial": each.commercial_use,
        "bytes": each.bytes or "",
        "parameters": each.parameters,
        "width": each.num_features or "",
    }
    attributes = " ".join(f'data-{key}="{escape(str(value))}"' for key, value in data.items())
    star = ' <span title="what the name without a tag loads">★<span class="zoo-hidden"> default</span></span>'
    link = f'<a href="weights/{escape(item.name)}.html">{escape(each.name)}<wbr>.{escape(each.tag)}</a>'
    facts = {
        "Takes": escape(words.takes(each)),
        "Gives": escape(words.gives(each)),
        **({"Untrained": escape(each.fresh)} if each.fresh else {}),
        "Size": f"{words.size(each.bytes)}, {words.parameters(each.parameters)}",
        "Licences": escape(words.licence(item.record.licences, "commercial", each.commercial_use)),
        "Results": _evidence(item),
    }
    rows = "".join(f"<div><dt>{key}</dt><dd>{value}</dd></div>" for key, value in facts.items())
    return (
        f"<li {attributes}><article><h2>{link}{star if each.default else ''}</h2>\n"
        f"<p>{_badges(item)}</p><p>{escape(each.summary)}</p><dl>{rows}</dl></article></li>"
    )


def _badges(item: Item) -> str:
    state = words.STATES[item.listed.state]
    badge = f'<span class="zoo-badge{" zoo-loads" if item.loads else ""}">{"✓ " if item.loads else ""}{state}</span>'
    return f'{badge} <span class="zoo-badge">{words.WHOSE[item.listed.trained_by]}</span>'


def _evidence(item: Item) -> str:
    found = item.evidence
    links = (f'<a href="cards/{item.family}.html#{one.section.anchor}">{escape(one.label)}</a>' for one in found)
    return "; ".join(links) if found else "none on the card"
