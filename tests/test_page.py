"""The page of `summarize.py --html`, and the statistics in it: in a real Chromium, where there is one."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from scipy import stats
from test_summarize import WEIGHTS, by_method, make_run

from distiller_zoo import find_method
from scripts import page, summarize
from scripts.published import items, read_published
from scripts.significance import Difference, difference, holm

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def test_welch_from_its_definition() -> None:
    a, b = [70.1, 70.5, 71.2, 69.9], [68.0, 69.5, 68.7]
    va, vb = np.var(a, ddof=1) / len(a), np.var(b, ddof=1) / len(b)
    df = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    mean, half = np.mean(a) - np.mean(b), stats.t.ppf(0.975, df) * (va + vb) ** 0.5
    p = 2 * stats.t.sf(mean / (va + vb) ** 0.5, df)
    np.testing.assert_allclose(difference(a, b), [mean, mean - half, mean + half, p], rtol=1e-9)


def test_single_seeds_and_equal_ones() -> None:
    assert difference([3.0], [1.0, 2.0]) == Difference(1.5)
    assert difference([3.0, 3.0], [1.0, 1.0]) == Difference(2.0, 2.0, 2.0, 0.0)
    assert difference([3.0, 3.0], [3.0, 3.0]).p == 1.0


def test_holm_rejects_step_by_step() -> None:
    p = [0.01, 0.04, 0.03, 0.005, 0.9]
    rejected, level = [], 0.05
    for i, value in sorted(enumerate(p), key=lambda pair: pair[1]):
        if value > level / (len(p) - len(rejected)):
            break
        rejected.append(i)
    assert sorted(rejected) == [i for i, found in enumerate(holm(p)) if found <= level]
    assert holm(p) == pytest.approx([0.04, 0.09, 0.09, 0.025, 0.9])
    assert holm([]) == [] and holm([0.8, 0.7]) == [1.0, 1.0]


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A page of two methods and `none` with three seeds each, one run alone, and a run that is not finished."""
    monkeypatch.setitem(WEIGHTS, "sp", (1.0, 0.0, 3000.0))
    accuracies = {"none": [60.0, 60.4, 60.2], "kd": [64.0, 64.3, 64.1], "sp": [61.0, 59.0, 62.0]}
    for method, last in accuracies.items():
        for seed, accuracy in enumerate(last, 1):
            make_run(tmp_path / "save" / f"{method}_{seed}", [50.0, 55.0, accuracy], seed, method=method)
    make_run(tmp_path / "save" / "crd", [50.0, 55.0, 63.0], method="crd")
    make_run(tmp_path / "save" / "stopped", [50.0], method="crd", nce_k=3)
    summarize.main([str(tmp_path / "save"), "--html", str(tmp_path / "page.html")])
    return tmp_path


def test_the_table_marks_differences(made, capsys) -> None:
    summarize.main([str(made / "save"), "--out", str(made / "out")])
    rows = by_method(capsys.readouterr().out)
    assert re.fullmatch(r"\+3\.93 \[\+3\.\d\d, \+4\.\d\d\] \*", rows["kd"]["gain over none"])
    assert rows["sp"]["gain over none"].startswith("+0.47 [") and rows["sp"]["over kd"].startswith("-3.47 [")
    assert "*" not in rows["sp"]["gain over none"]
    assert rows["crd"]["gain over none"] == "+2.80"  # one seed: no interval
    assert rows["none"]["gain over none"] == rows["kd"]["over kd"] == ""


def test_it_needs_no_network(made) -> None:
    text = (made / "page.html").read_text()
    assert not re.search(r'(src|href)="|url\(|@import|fetch\(|XMLHttpRequest', text)
    data = json.loads(re.search(r'<script id="data"[^>]*>(.*?)</script>', text, re.S)[1])
    assert [row["method"] for row in data["rows"]] == ["none", "sp", "crd", "kd"]
    assert str(made) not in text
    assert data["lists"]["Unfinished"] and data["rows"][0]["runs"][0]["folder"].startswith("save/none_")


def test_names_cannot_leave_their_place() -> None:
    text = page.render([], {"Unfinished": ["</script><script>alert(1)</script>"]})
    assert "alert(1)</script>" not in text and text.count("</script>") == 2


ACTIONS = """
const say = (name, value) => parent.postMessage([name, value], "*");
const seen = () => [...document.querySelectorAll("tbody tr")].map(tr => tr.cells[0].textContent);
const button = name => [...document.querySelectorAll("th button")].find(b => b.textContent === name);
say("first", seen());
button("method").click(); say("by method", seen());
button("method").click(); say("by method, down", seen());
const find = document.getElementById("find");
find.value = "k"; find.dispatchEvent(new Event("input")); say("filtered", seen());
find.value = ""; find.dispatchEvent(new Event("input"));
const curve = [...document.querySelectorAll("svg .curve.kd")][0];
curve.nextElementSibling.dispatchEvent(new MouseEvent("mouseenter"));
say("label", document.querySelector("svg .label").textContent);
say("on", document.querySelector("tbody tr.on").cells[0].textContent);
say("band", document.querySelectorAll('svg .band[visibility=visible]').length);
document.querySelector("tbody tr").click();
say("links", [...document.querySelectorAll("#details a")].map(a => a.getAttribute("href")));
say("options", document.querySelector("#details pre").textContent.includes('"distill"'));
say("wide", [document.documentElement.scrollWidth, innerWidth]);
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [400, 1200])
def test_in_a_browser(made, width) -> None:
    """Sorts, filters, answers the pointer, opens a row; no error, and no page wider than the window."""
    inner = (
        (made / "page.html")
        .read_text()
        .replace('"use strict";', '"use strict"; window.onerror = e => parent.postMessage(["error", String(e)], "*");')
    )
    inner = inner.replace("</body>", f"<script>{ACTIONS}</script></body>")
    outer = f"""<!doctype html><title>test</title><pre id="out"></pre><script>
    const out = [], shown = document.getElementById("out");
    onmessage = e => {{ out.push(e.data); shown.textContent = JSON.stringify(out); }};
    </script><iframe style="width:{width}px;height:900px;border:0" srcdoc="{html.escape(inner)}"></iframe>"""
    (made / "outer.html").write_text(outer)
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom"]
    command += [f"--user-data-dir={made / 'profile'}", f"file://{made / 'outer.html'}"]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    found = {
        name: value for name, value in json.loads(html.unescape(re.search(r'<pre id="out">(.*?)</pre>', dom, re.S)[1]))
    }
    assert "error" not in found, found["error"]
    assert found["first"] == ["kd", "crd", "sp", "none"]
    assert found["by method"] == ["crd", "kd", "none", "sp"] and found["by method, down"] == found["by method"][::-1]
    assert found["filtered"] == ["kd"]
    assert found["label"] == "kd: 64.13 ± 0.15" and found["on"] == "kd" and found["band"] == 1
    assert len(found["links"]) == 9 and found["links"][0].endswith("/options.json") and found["options"] is True
    assert found["wide"][0] <= found["wide"][1] == width


def test_the_methods_with_a_published_number() -> None:
    found = items("cifar100", "resnet32x4", "resnet8x4")
    assert {"none", "kd", "crd", "icd -a 1", "dkd --standardise", "kd --dot 0.075"} <= set(found)
    assert all(find_method(item.split()[0]) for item in found) and len(set(found)) == len(found)
    assert not any(find_method(item.split()[0]).weights[1] and "-a" in item for item in found)
    assert len(found) <= 1 + len([key for key in read_published() if key[2:] == ("resnet32x4", "resnet8x4")])
    assert items("cifar100", "resnet8", "resnet8") == ["none"]
