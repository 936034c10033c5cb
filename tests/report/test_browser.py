"""The page in a real browser: nothing is loaded or complained of, charts are drawn, no text is cut off or covered."""

import copy
import shutil
from pathlib import Path

import numpy as np
import pytest

from kinfold.report import render
from kinfold.report.beside import Beside
from kinfold.report.charts import series
from kinfold.report.rows import Shown

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]

SIZES = {"desktop": (1280, 900), "phone": (375, 700)}

FAULTS = """() => {
  const found = [], wide = document.documentElement.clientWidth;
  document.querySelectorAll("details").forEach(each => each.open = true);
  if (document.documentElement.scrollWidth > wide) found.push("the page is wider than the screen");
  document.querySelectorAll("main *:not(.scroll *, svg *)").forEach(each => {
    if (each.getBoundingClientRect().right > wide + 1)
      found.push("wider than the screen: " + each.outerHTML.slice(0, 80));
  });
  document.querySelectorAll("svg").forEach(svg => {
    const name = svg.querySelector("title").textContent, box = svg.getBoundingClientRect(), unit = box.width / 360;
    const drawn = [...svg.querySelectorAll("path, circle, rect")].some(each => {
      const inner = each.getBoundingClientRect();
      return inner.width + inner.height > 5;
    });
    if (box.width < 100 || box.height < 20 || !drawn) found.push(name + ": nothing is drawn");
    const texts = [...svg.querySelectorAll("text")].map(each =>
      [each.textContent, each.getBoundingClientRect(), each.hasAttribute("transform")]);
    texts.forEach(([words, at, turned], k) => {
      if (at.left < box.left - 1 || at.right > box.right + 1 || at.top < box.top - 1 || at.bottom > box.bottom + 1)
        found.push(name + ": cut off: " + words);
      texts.slice(k + 1).forEach(([others, to, alike]) => {
        const across = Math.min(at.right, to.right) - Math.max(at.left, to.left);
        const down = Math.min(at.bottom, to.bottom) - Math.max(at.top, to.top);
        // a line of type has room above and below its letters
        const lines = turned && alike ? [down, across] : [across, down];
        if (lines[0] > unit && lines[1] > (turned === alike ? 4.5 : 1) * unit)
          found.push(name + ": " + words + " covers " + others);
      });
    });
  });
  return found;
}"""


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def of_classes(run, classes):
    """The same run, with long names of many classes."""
    result, history, config = copy.deepcopy(run)
    cells = [[c, c, 12] for c in range(classes)] + [[c, (5 * c) % classes, 1 + c] for c in range(1, classes)]
    labels = [f"<b>{'class name 文字'[: 3 + c]}</b> {c}" for c in range(classes)]
    result["diagnostics"] |= {"labels": labels, "confusion": cells}
    return result, history, config


def with_rows():
    """What a page shows beside the run: rows and a comparison."""
    about = {"title": "Row 42", "describe": "A series"}
    shown = {
        42: Shown(text="word " * 100 + "<script>alert(1)</script>" + "x" * 300, more="9 more letters"),
        3: Shown(
            chart=series("row-3", np.sin(np.arange(90, dtype=np.float32))[None], **about),
            values=(("y" * 99, "z" * 99),),
        ),
    }
    head = ("arm", "mean (95% interval)", "better than all-rows by", "p", "training loss", "generalization gap")
    rows = tuple((arm, *["0.7926 (0.6151 to 0.9700)"] * 5) for arm in ("conventional", "a" * 90))
    return {"shown": shown, "beside": Beside("accuracy", head, rows, "How.", "It helped.", (), "amto")}


PAGES = {
    "two": ({"tasks": 2}, None),
    "eight": ({"tasks": 8, "periods": 18}, 10),
    "sixteen": ({"tasks": 16, "periods": 50}, 16),
    "many": ({"tasks": 40, "periods": 9}, 40),
    "one": ({"tasks": 1}, None),
    "values": ({"metric": "r2"}, None),
    "unsealed": ({"holdout": False}, None),
    "rows": ({}, None),
}


@pytest.fixture(scope="module")
def page_file(make_run, tmp_path_factory):
    """Writes one of the pages, and returns where it is."""

    def write(name: str) -> Path:
        options, classes = PAGES[name]
        run = make_run(**options)
        run = run if classes is None else of_classes(run, classes)
        html = render(*run, **(with_rows() if name == "rows" else {}))
        path = tmp_path_factory.mktemp("report") / "report.html"
        path.write_text(html, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_drawn_without_fault(browser, page_file, name):
    path, said = page_file(name), []
    page = browser.new_page()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url))
    for width, height in SIZES.values():
        page.set_viewport_size({"width": width, "height": height})
        page.goto(path.as_uri())
        assert page.locator("svg").count() >= 3
        assert page.evaluate(FAULTS) == []
    assert set(said) == {path.as_uri()}
    page.close()


@pytest.mark.parametrize("name", ["eight", "values", "unsealed", "rows"])
def test_a_page_is_accessible(browser, page_file, name):
    axe = pytest.importorskip("axe_playwright_python")
    rules = (Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    path = page_file(name)
    for scheme in ("light", "dark"):
        # without the page's own policy, which would keep the rules from running
        context = browser.new_context(color_scheme=scheme, viewport={"width": 375, "height": 700}, bypass_csp=True)
        page = context.new_page()
        page.goto(path.as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        page.add_script_tag(content=rules)
        found = page.evaluate("axe.run()")
        assert len(found["passes"]) > 25
        assert [(each["impact"], each["id"], each["nodes"][0]["html"]) for each in found["violations"]] == []
        context.close()


def test_keys_lead_through_the_page(browser, page_file):
    page = browser.new_page()
    page.goto(page_file("two").as_uri())
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0  # it comes into sight
    page.keyboard.press("Enter")
    assert page.url.endswith("#answer")
    page.locator("summary").first.focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.querySelector('details').open")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineWidth") == "3px"
    page.close()


def test_no_script_runs(browser, page_file):
    """Even if one got into the page, its policy would keep it from running."""
    path = page_file("one")
    html = path.read_text(encoding="utf-8")
    path.write_text(html.replace("</main>", "<script>document.title = 'run'</script></main>"), encoding="utf-8")
    page = browser.new_page()
    page.goto(path.as_uri())
    assert page.title() == "Kinfold report: digits · mlp"
    page.close()
