"""Drawings of a report show its numbers where their axes say, and tell their parts apart without colour, too."""

import math
import re
from collections import Counter
from dataclasses import replace
from xml.etree import ElementTree as Xml

import pytest
from probe_reports import made_report

from zoo.evaluation.charts import PLAIN, REST, looks, ramp, twin_looks
from zoo.evaluation.drawings import bars_of, curves_of, difference_bars_of, maps_of
from zoo.evaluation.report import KNN, LINEAR, Estimate

NUMBER = "(-?[0-9.]+)"


@pytest.fixture(scope="module")
def report():
    return made_report()


def axis(svg, anchor, place, along):
    """Numbers at an axis: what each says, and where it stands."""
    texts = [each for each in svg.iter("text") if each.get("text-anchor") == anchor]
    read = {text.text.replace(",", "").replace("\N{MINUS SIGN}", "-"): text for text in texts}
    return {
        along(float(said)): float(text.get(place)) for said, text in read.items() if re.fullmatch("-?[0-9.]+", said)
    }


def scale_of(ticks, shift=0.0):
    """The function from a place to the number there, by the first and last number of an axis."""
    (low, start), *_, (high, end) = sorted(ticks.items())
    return lambda place: low + (place - shift - start) * (high - low) / (end - start)


def test_curves_lie_where_the_axes_say(report):
    """An axis turned over, a tick beside its number, a band of another line, a legend with another's sign."""
    panels = curves_of(report)
    assert [panel.title for panel in panels] == ["All encoders", *(each.name for each in report.asked())]
    for panel in panels:
        svg = Xml.fromstring(panel.svg)
        x_of = scale_of(axis(svg, "middle", "x", math.log))
        ticks = axis(svg, "end", "y", float)
        y_of = scale_of(ticks, shift=-5)
        assert ticks[max(ticks)] < ticks[min(ticks)]
        strokes = {each.get("stroke"): each for each in svg.iter("path") if each.get("stroke-width") == "2.2"}
        bands = {each.get("fill"): each for each in svg.iter("path") if each.get("fill-opacity")}
        assert len(strokes) == len(panel.legend)
        for sign, name in panel.legend:
            colour = re.search('stroke="(#[0-9a-f]+)"', sign)[1]
            result = report.result(name)
            points = [(x_of(x), y_of(y)) for x, y in places(strokes[colour])]
            assert points == [
                (pytest.approx(math.log(p.cases), abs=0.01), pytest.approx(p.mean, abs=0.002)) for p in result.curve
            ]
            ends = [p.high for p in result.curve] + [p.low for p in reversed(result.curve)]
            assert [y_of(y) for _, y in places(bands[colour])] == pytest.approx(ends, abs=0.002)


def places(path):
    return [(float(x), float(y)) for x, y in re.findall(f"[ML]{NUMBER} {NUMBER}", path.get("d"))]


def test_each_encoder_stands_beside_its_own_twin(report):
    """The random weights of another network are no baseline of this one."""
    for panel, result in zip(curves_of(report)[1:], report.asked(), strict=True):
        assert [name for _, name in panel.legend] == [result.name, result.twin, "plain intensities"]


def test_values_far_below_guessing_do_not_press_the_others_together():
    """One draw of ten cases with an R2 of -40 would leave a line of all curves and strips."""
    report = made_report(("one",), classes=())
    first = report.encoders[0]
    curve = (replace(first.curve[0], mean=-30.0, low=-60.0, high=-4.0), *first.curve[1:])
    bad = {probe: {**each, "r2": Estimate(-30.0, -60.0, -4.0)} for probe, each in first.measures.items()}
    changed = replace(report, encoders=(replace(first, curve=curve), replace(report.encoders[1], measures=bad)))
    svg = Xml.fromstring(curves_of(changed)[0].svg)
    assert min(axis(svg, "end", "y", float)) >= -0.6
    inner = svg.find("svg")
    assert len(list(inner.iter("path"))) == len(list(svg.iter("path"))) - sum(1 for _ in svg.findall("path"))
    strips = bars_of(changed)
    low, high = ends_of(strips["one", LINEAR])
    assert high - low > 5


def ends_of(strip):
    path = next(each for each in Xml.fromstring(strip).iter("path") if each.get("stroke-width") == "1.8")
    return [float(each) for each in re.search(f"M{NUMBER} 4v8m0-4H{NUMBER}", path.get("d")).groups()]


def test_strips_are_on_one_scale(report):
    """Each interval stretched to its own scale would make all look alike."""
    strips = bars_of(report)
    estimates = {
        (each.name, probe): each.measures[probe]["auroc"] for each in report.encoders for probe in (LINEAR, KNN)
    }
    drawn = sorted((estimates[key].low, ends_of(strip)[0]) for key, strip in strips.items())
    per_unit = (drawn[-1][1] - drawn[0][1]) / (drawn[-1][0] - drawn[0][0])
    for key, strip in strips.items():
        low, high = ends_of(strip)
        assert high - low == pytest.approx((estimates[key].high - estimates[key].low) * per_unit, abs=0.2)
    gains = difference_bars_of(report)
    for (_, gain), strip in gains.items():
        level = float(re.search(f'd="M{NUMBER} 0V16"', strip)[1])
        low, high = ends_of(strip)
        assert (low < level < high) == (gain.difference.low < 0 < gain.difference.high)


@pytest.mark.parametrize("classes", [("no", "yes"), tuple("abcdefghijk"), ()])
def test_maps_draw_each_case_with_the_sign_of_its_label(classes):
    """A sign of another class, a case that is left out or drawn twice."""
    report = made_report(classes=classes, column="label")
    for panel, result in zip(maps_of(report), report.asked(), strict=True):
        labels = [report.shown[case].label for case in result.map.cases]
        drawn = {}
        for path in Xml.fromstring(panel.svg).iter("path"):
            if path.get("fill-opacity"):
                drawn[path.get("fill")] = path.get("d").count("M")
        said = {words: drawn.get(re.search('fill="(#[0-9a-f]+)"', sign)[1], 0) for sign, words in panel.legend}
        assert said == {words: count for words, count in counts_by(panel, labels, classes).items()}
        assert sum(drawn.values()) == len(labels)


def counts_by(panel, labels, classes):
    """How many labels each line of a legend stands for, by its words alone."""
    words = [each for _, each in panel.legend]
    if classes:
        found = Counter(labels)
        rest = sum(found[name] for name in found if name not in words)
        return {each: found[each] if each in classes else rest for each in words}
    steps = [tuple(map(float, each.split(" to "))) for each in words]
    return {
        each: sum(low <= float(label) <= high for label in labels)
        for each, (low, high) in zip(words, steps, strict=True)
    }


def test_looks_differ_in_their_markers_and_stand_out_on_paper():
    """A colour that white paper swallows, or two classes of one marker and one colour."""
    assert len(set(looks(64))) == 64
    assert len({look.marker for look in looks(8)}) == 8
    assert len({*twin_looks(16), PLAIN}) == 17
    assert all(contrast(look.colour) >= 4.5 for look in [*looks(8), *twin_looks(1), PLAIN, REST])
    assert all(contrast(look.colour) >= 3 for look in ramp())


def contrast(colour):
    """Against white, by WCAG 2.2."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 1.05 / (0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05)
