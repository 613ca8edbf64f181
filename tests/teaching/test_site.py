"""The web site and the slides: whole, offline, and readable on a phone."""

import hashlib
import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from course.checks.notebook import read, tags
from course.making import browser
from course.paths import ROOT, SOLUTIONS, lesson_names
from course.saved import languages

NEEDED = ("furo", "jupytext", "myst_nb", "nbgrader", "playwright", "sphinx_revealjs")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
WHY = f"{', '.join(MISSING)}: not installed (python start.py teach installs it)"
if not MISSING and browser.find_browser() is None:
    MISSING, WHY = ["chromium"], "no Chromium or Chrome found (install one)"
if MISSING and os.environ.get("CI") != "true":
    pytest.skip(WHY, allow_module_level=True)

GUIDE = sorted(
    path.stem for path in (ROOT / "course" / "teaching" / "guide").glob("*.md")
)
CHINESE = [x for x in lesson_names() if "zh_CN" in languages.languages_of(x)]
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


def build(out: Path, seed: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "course.teaching.site", str(out)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built once by the documented command."""
    if MISSING:
        pytest.fail(f"{WHY}; with CI=true this test must run", pytrace=False)
    out = tmp_path_factory.mktemp("built") / "site"
    done = build(out, "1")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return out


class Page(HTMLParser):
    """A page's ids, its links, what it loads, and its text outside folded code."""

    def __init__(self, path: Path):
        super().__init__()
        self.ids, self.links, self.loaded, self.alts = set(), [], [], []
        self.shown, self.folded = [], []
        self._open, self._hidden = [], 0
        self.feed(path.read_text(encoding="utf-8"))
        self.text, self.folded_text = "".join(self.shown), "".join(self.folded)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if tag == "link" and given["rel"] not in ("index", "search", "next", "prev"):
            self.loaded.append(given["href"])
        if tag in ("script", "img", "iframe", "source", "video") and given.get("src"):
            self.loaded.append(given["src"])
        if tag == "img":
            self.alts.append(given.get("alt"))
        if tag == "details":
            self._open.append("hide" in (given.get("class") or ""))
            self._hidden += self._open[-1]

    def handle_endtag(self, tag):
        if tag == "details":
            self._hidden -= self._open.pop()

    def handle_data(self, data):
        (self.folded if self._hidden else self.shown).append(data)


@pytest.fixture(scope="module")
def pages(site):
    """Path relative to the site -> Page, for all pages but the slides."""
    found = {path.relative_to(site).as_posix(): path for path in site.rglob("*.html")}
    return {n: Page(p) for n, p in found.items() if not n.startswith("slides/")}


def squeezed(text: str) -> str:
    return "".join(text.split())


# --- the pages ------------------------------------------------------------------------


def test_every_lesson_and_every_page_of_the_guide_is_there(pages):
    wanted = {f"lessons/{name}.html" for name in lesson_names()}
    wanted |= {f"guide/{name}.html" for name in GUIDE}
    wanted |= {f"zh_CN/{name}.html" for name in [*CHINESE, "index", "glossary"]}
    assert wanted | {"index.html", "search.html"} == set(pages)
    front = {link for link in pages["index.html"].links}
    assert wanted <= front


@pytest.mark.parametrize("name", lesson_names())
def test_a_lesson_shows_all_that_its_cells_printed_and_drew(pages, name):
    page = pages[f"lessons/{name}.html"]
    text, figures = squeezed(page.text), 0
    for cell in read(SOLUTIONS / f"{name}.ipynb").cells:
        for output in cell.get("outputs", ()):
            assert squeezed(output.get("text", "")) in text
            figures += "image/png" in output.get("data", {})
    assert sum("_images" in source for source in page.loaded) == figures
    assert all(len(alt or "") > 10 for alt in page.alts)


@pytest.mark.parametrize("name", CHINESE)
def test_a_lesson_and_its_translation_lead_to_each_other(pages, site, name):
    english, chinese = pages[f"lessons/{name}.html"], pages[f"zh_CN/{name}.html"]
    assert f"../zh_CN/{name}.html" in english.links
    assert f"../lessons/{name}.html" in chinese.links
    title = languages.translations(name, "zh_CN")["Questions"]
    assert title in chinese.text
    assert title not in english.text
    assert sum("_images" in x for x in chinese.loaded) == sum(
        "_images" in x for x in english.loaded
    )
    assert 'lang="zh-CN"' in (site / f"zh_CN/{name}.html").read_text("utf-8")[:400]


@pytest.mark.parametrize("name", lesson_names())
def test_an_answer_is_folded_and_the_stub_is_not(pages, name):
    page = pages[f"lessons/{name}.html"]
    shown, folded = squeezed(page.text), squeezed(page.folded_text)
    assert "BEGINSOLUTION" not in shown + folded
    for cell in read(SOLUTIONS / f"{name}.ipynb").cells:
        if "exercise" not in tags(cell):
            continue
        answers = re.findall(r"BEGIN SOLUTION\n(.*?)### END", cell.source, re.DOTALL)
        assert answers
        for answer in map(squeezed, answers):
            assert answer in folded
            assert answer not in shown
        first_line = squeezed(cell.source.splitlines()[0])
        assert first_line in shown
    cards = shown.count(f"Exercise{name[:2]}.") // 2  # once in the contents
    assert shown.count("raiseNotImplementedError(") >= cards > 0


def test_no_link_leads_nowhere(site, pages):
    lost = []
    for name, page in pages.items():
        for link in page.links + page.loaded:
            goal = urlsplit(link)
            if goal.scheme:
                continue
            path = site / name
            if goal.path:
                path = path.parent / unquote(goal.path)
            known = pages.get(os.path.relpath(path, site).replace(os.sep, "/"))
            anchor = unquote(goal.fragment)
            if not path.is_file() or (anchor and known and anchor not in known.ids):
                lost.append(f"{name}: {link}")
    assert lost == []


def test_no_page_and_no_style_asks_for_anything_from_elsewhere(site, pages):
    for name, page in pages.items():
        elsewhere = [x for x in page.loaded if urlsplit(x).scheme or x[:2] == "//"]
        assert elsewhere == [], name
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert not re.search(r"url\(\s*[\"']?(https?:)?//|@import", text), style.name


def test_the_same_sources_give_the_same_bytes(site, tmp_path):
    again = tmp_path / "elsewhere" / "site"
    assert build(again, "2").returncode == 0

    def digests(root):
        files = [path for path in root.rglob("*") if path.is_file()]
        return {
            path.relative_to(root): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files
        }

    one, two = digests(site), digests(again)
    assert sorted(x for x in one | two if one.get(x) != two.get(x)) == []
    assert list(again.parent.iterdir()) == [again]  # nothing half made beside it


# --- in a browser, from the disk ------------------------------------------------------


@pytest.fixture(scope="module")
def chromium(site):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=browser.find_browser(),
            args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
        )
        yield running
        running.close()


def opened(chromium, viewport, scheme="light"):
    """A browser page, and the list of what went wrong in it or was asked for online."""
    page, wrong = chromium.new_page(viewport=viewport, color_scheme=scheme), []
    page.on("pageerror", lambda error: wrong.append(str(error)))

    def asked(request):
        if urlsplit(request.url).scheme not in ("file", "data", "blob"):
            wrong.append(request.url)

    page.on("request", asked)
    return page, wrong


@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_every_page_works_offline_and_fits_the_screen(chromium, site, pages, viewport):
    page, wrong = opened(chromium, viewport)
    for name in pages:
        page.goto((site / name).as_uri())
        width = page.evaluate("document.documentElement.scrollWidth")
        assert (name, width <= viewport["width"], wrong) == (name, True, [])
        # Nothing is cut off either: what is too wide stands in a box that scrolls.
        cut = page.evaluate(
            """width => {
                const right = e => e.getBoundingClientRect().right;
                const scrolls = e => e.closest("article") && (right(e) <= width + 1
                    && /auto|scroll/.test(getComputedStyle(e).overflowX)
                    || scrolls(e.parentElement));
                return [...document.querySelectorAll("article *")]
                    .filter(e => right(e) > width + 1 && !scrolls(e.parentElement)
                        && !e.matches(".headerlink"))
                    .map(e => e.outerHTML.slice(0, 100));
            }""",
            viewport["width"],
        )
        assert (name, cut) == (name, [])


def test_the_search_finds_a_function_without_a_server(chromium, site):
    page, wrong = opened(chromium, DESKTOP)
    page.goto((site / "search.html").as_uri() + "?q=top_k_filter")
    page.wait_for_selector("#search-results li a")
    found = page.locator("#search-results li a").all()
    links = [link.get_attribute("href") for link in found]
    assert any("lessons/04_top_k.html" in link for link in links)
    # Only the excerpts below the titles need a server.
    assert set(wrong) <= {"Failed to fetch"}


def test_dark_mode_is_dark_and_light_mode_is_light(chromium, site):
    brightness = {}
    for scheme in ("dark", "light"):
        page, _ = opened(chromium, DESKTOP, scheme)
        page.goto((site / "lessons/04_top_k.html").as_uri())
        colours = page.evaluate(
            "[document.body, document.querySelector('div.cell_input .highlight')]"
            ".map(e => getComputedStyle(e).backgroundColor)"
        )
        numbers = [int(n) for c in colours for n in re.findall(r"\d+", c)[:3]]
        brightness[scheme] = numbers
    assert max(brightness["dark"]) < 80
    assert min(brightness["light"]) > 200


def test_a_formula_is_typeset_and_a_hint_folds(chromium, site):
    page, _ = opened(chromium, PHONE)
    page.goto((site / "lessons/03_your_own_loop.html").as_uri())
    height = page.locator("div.formula mfrac").first.bounding_box()["height"]
    assert height > page.locator("div.formula mi").first.bounding_box()["height"]
    assert "\\tfrac" not in page.inner_text("article")
    hint = page.locator("article details:not(.hide):has(code)").first
    code = hint.locator("code").first
    assert not code.is_visible()
    hint.locator("summary").click()
    assert code.is_visible()


# --- the slides -----------------------------------------------------------------------


@pytest.mark.parametrize("name", lesson_names())
def test_slides_have_the_exercises_the_questions_and_the_figures_but_no_answer(
    site, name
):
    text = (site / "slides" / f"{name}.html").read_text(encoding="utf-8")
    slides = text[text.index("<section>") : text.rindex("</section>")]
    cells = read(SOLUTIONS / f"{name}.ipynb").cells
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    exercises = re.findall(r"^### Exercise (\S+)", prose, re.MULTILINE)
    assert re.findall(r"<h3>Exercise (\S+)", slides) == exercises != []
    assert slides.count("<strong>Predict") == prose.count("**Predict") > 0
    outputs = [o for c in cells for o in c.get("outputs", ())]
    figures = [o for o in outputs if "image/png" in o.get("data", ())]
    assert slides.count('src="data:image/png') == len(figures) > 0
    folded = ("SOLUTION", "Hint 1", "<details", "check(", "$$")
    assert [word for word in folded if word in slides] == []


@pytest.mark.parametrize("name", lesson_names())
def test_slides_work_offline_and_each_fits_its_page(chromium, site, name):
    page, wrong = opened(chromium, {"width": 1280, "height": 720})
    page.goto((site / "slides" / f"{name}.html").as_uri())
    page.wait_for_function("Reveal.isReady()")
    too_long = []
    for n in range(page.evaluate("Reveal.getTotalSlides()")):
        page.evaluate("n => Reveal.slide(n, 0, 9)", n)
        page.evaluate(
            "new Promise(done => requestAnimationFrame(() => setTimeout(done)))"
        )
        height, width = page.locator("section.present").evaluate(
            "e => [e.scrollHeight, e.scrollWidth]"
        )
        if height > 720 or width > 1280:
            too_long.append((n + 1, height, width))
    assert (too_long, wrong) == ([], [])


def test_the_output_of_a_demo_comes_with_the_next_click(chromium, site):
    page, _ = opened(chromium, {"width": 1280, "height": 720})
    page.goto((site / "slides" / "04_top_k.html").as_uri())
    page.wait_for_function("Reveal.isReady()")
    answer = page.locator("pre.output", has_text="outside the top 1,000")
    code = page.locator("section.present", has_text="ordered = ")
    for _ in range(20):
        if code.count():
            break
        page.keyboard.press("ArrowRight")
    assert float(answer.evaluate("e => getComputedStyle(e.parentElement).opacity")) == 0
    page.keyboard.press("ArrowRight")
    assert float(answer.evaluate("e => getComputedStyle(e.parentElement).opacity")) == 1
    assert code.count() == 1


# --- what goes wrong ------------------------------------------------------------------


def test_a_warning_of_sphinx_stops_the_build_and_leaves_the_old_site(
    site, tmp_path, monkeypatch, capfd
):
    from course.teaching import site as program

    def gather(target):
        target.mkdir(parents=True)
        (target / "index.md").write_text("# A page\n\n[a link](missing.md)\n")

    monkeypatch.setattr(program, "gather", gather)
    monkeypatch.setattr(program, "lesson_names", lambda: [])
    old = tmp_path / "out"
    old.mkdir()
    for name in (program.MARK, "index.html"):
        (old / name).write_text("old")
    with pytest.raises(SystemExit, match="not built"):
        program.main([str(old)])
    assert "missing.md" in capfd.readouterr().err
    assert sorted(p.name for p in tmp_path.rglob("*")) == [
        program.MARK,
        "index.html",
        "out",
    ]


def test_a_folder_that_holds_something_else_is_left_alone(site, tmp_path):
    from course.teaching import site as program

    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(SystemExit, match="left alone"):
        program.main([str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_links_lead_to_pages_and_a_dead_link_is_an_error(site, tmp_path):
    from course.teaching.site import relinked

    pages = {"lessons/04_top_k.ipynb": "lessons/04_top_k.ipynb"}
    pages["course/teaching/guide/index.md"] = "guide/index.md"

    def from_guide(text):
        return relinked(
            text, "course/teaching/guide/index.md", "guide/index.md", pages, tmp_path
        )

    kept = "[a](https://example.org) [b](#there) `[c](d)` `x[0](1)`"
    assert from_guide(kept) == kept
    linked = from_guide("see [`top_k` it](../../../lessons/04_top_k.ipynb#ties).")
    assert linked == "see [`top_k` it](../lessons/04_top_k.ipynb#ties)."
    assert from_guide("[the licence](../../../LICENSE)") == "the licence"
    assert from_guide("![x](../../exercise.png)") == "![x](exercise.png)"
    assert (tmp_path / "guide" / "exercise.png").stat().st_size > 0
    with pytest.raises(FileNotFoundError, match="no_such.md"):
        from_guide("[gone](no_such.md)")


def test_a_formula_that_cannot_be_read_is_an_error_that_shows_it(site):
    from course.teaching.mathml import grouped, mathml

    assert grouped(r"a \textstyle\sum b") == r"a {\textstyle\sum b}"
    assert (
        grouped(r"\textstyle a {\displaystyle b}") == r"\textstyle a {\displaystyle b}"
    )
    assert re.sub(r"\s", "", mathml("x_i")).endswith("</math>")
    assert "<msub>" in mathml("x_i")
    assert 'display="block"' in mathml("x", block=True)
    with pytest.raises(ValueError, match="nosuchcommand"):
        mathml(r"\nosuchcommand{x}")
