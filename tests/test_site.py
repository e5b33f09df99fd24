"""The site: built from small repositories made here, then from this one, read in headless Chromium."""
import base64
import hashlib
import io
import json
import os
import shutil
import signal
import threading
import urllib.request
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import pandas as pd
import pytest
import torch
from PIL import Image

import processes
from robustnb.lab import site

ROOT = Path(__file__).resolve().parent.parent


def picture() -> str:
    "A small PNG, as a notebook stores it."
    out = io.BytesIO()
    Image.new("RGB", (120, 80), "#0072b2").save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def cell(kind: str, source: str, *outputs, tags=()) -> dict:
    made = {
        "cell_type": kind,
        "metadata": {"tags": list(tags)} if tags else {},
        "source": source.splitlines(keepends=True),
    }
    return {**made, "outputs": list(outputs), "execution_count": None} if kind == "code" else made


def write(path: Path, *cells, **metadata) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": list(cells), "metadata": metadata, "nbformat": 4, "nbformat_minor": 4}))


def display(**data) -> dict:
    return {"output_type": "display_data", "metadata": {}, "data": data}


LIBRARY = [
    cell("code", "#| default_exp shift"),
    cell(
        "markdown",
        "# Shift\n\n> Move images.\n\nThe loss is $\\frac{a}{b}$ and\n\n"
        "$$L = \\sum_i l_i$$ {#eq-loss}\n\nas in @eq-loss.",
    ),
    cell("code", "#| export\nfrom torch import Tensor"),
    cell("markdown", "## Moving"),
    cell(
        "code",
        '#| export\ndef shift(\n    x: Tensor,  # images, [B,C,H,W]\n    by: int = 1,  # pixels to the right\n'
        ') -> Tensor:  # [B,C,H,W]\n    "Move `x` to the right."\n    return x.roll(by, -1)',
    ),
    cell(
        "code",
        "shift(x)",
        {"output_type": "execute_result", "metadata": {}, "execution_count": 1, "data": {"text/plain": "moved"}},
    ),
    cell("code", "#| hide\nimport nbdev; nbdev.nbdev_export()"),
]
TABLE = (
    '<div><table border="1" class="dataframe"><thead><tr><th>claim</th><th>ours</th></tr></thead><tbody><tr>'
    '<td>one</td><td>0.5</td></tr></tbody></table></div>'
)
RESULT = [
    cell("markdown", "# Figure 1\n\n> Accuracy falls with noise.\n\nSee @fig-noise, @tbl-ours and `shift`."),
    cell("code", "profile = 'smoke'", tags=["parameters"]),
    cell("code", "import os"),
    cell("code", '#| label: fig-noise\n#| fig-cap: "Accuracy at $\\\\epsilon$"\nplot()'),
    cell("code", "#| label: tbl-ours\n#| tbl-cap: Ours\ntable()"),
]


def executed(profile: str, **papermill) -> tuple[list, dict]:
    "Cells and metadata of the result notebook after a run."
    cells = json.loads(json.dumps(RESULT))
    cells[3]["outputs"] = [
        {"output_type": "stream", "name": "stderr", "text": ["cells:  50%|##   | 1/2\rcells: 100%|####| 2/2\n"]},
        display(**{"image/png": picture()}),
    ]
    cells[4]["outputs"] = [display(**{"text/html": TABLE, "text/plain": "table"})]
    cells[2:2] = [cell("code", f"profile = {profile!r}", tags=["injected-parameters"])]
    return (
        cells,
        {"papermill": {"end_time": "2026-03-01T10:00:00+00:00", "duration": 75.2, "exception": None, **papermill}},
    )


def sums_after_sums():
    "A parent whose torch has used two threads, then copies of it that compute as much."
    torch.set_num_threads(2)
    total = lambda seed: torch.arange(2**20, dtype=torch.float64).mul(seed).sum().item()
    assert total(1) == 2**19 * (2**20 - 1)
    assert site.on_all_cores(total, [1, 2, 3], "sums") == [total(1), total(2), total(3)]


def test_copies_of_a_process_that_has_computed_compute():
    process = processes.CONTEXT.Process(target=sums_after_sums)
    process.start()
    process.join(120)
    ended = process.exitcode
    process.kill()
    assert ended == 0, "the copies wait for threads that they do not have" if ended is None else ended


@pytest.fixture
def repository(tmp_path):
    "A repository of three notebooks, one of them a result with a quick run."
    shutil.copy(ROOT / "_quarto.yml", tmp_path)
    write(
        tmp_path / "nbs/index.ipynb",
        cell(
            "markdown",
            "# robustnb\n\n> Reproduced.\n\nRead [Figure 1](papers/demo/fig1.ipynb) or "
            "[`shift`](12_shift.ipynb#api-shift).",
        ),
    )
    write(tmp_path / "nbs/12_shift.ipynb", *LIBRARY)
    write(tmp_path / "nbs/papers/demo/fig1.ipynb", *RESULT)
    run(tmp_path, "quick")
    return tmp_path


def run(root: Path, profile: str, **papermill) -> None:
    "Leave a run of the result notebook."
    cells, metadata = executed(profile, **papermill)
    write(root / f".robustnb/runs/{profile}/papers/demo/fig1.ipynb", *cells, **metadata)


def build(root: Path, **options) -> Path:
    return site.build(**{"root": root, "renderer": "smalldocs", **options})


def page(root: Path, name: str) -> str:
    return (root / f"_docs/{name}.html").read_text()


def digest(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*")) if p.is_file()
    }


def test_library_page(repository):
    "Definitions become entries; directives, hidden cells and TeX are gone."
    before = digest(repository / "nbs"), digest(repository / ".robustnb/runs")
    assert build(repository) == repository / "_docs/index.html"
    text = page(repository, "12_shift")
    assert 'id="api-shift"' in text and "images, [B,C,H,W]" in text and "pixels to the right" in text
    assert "nbdev_export" not in text and "#| " not in text and "default_exp" not in text
    assert "<mfrac>" in text and "\\frac" not in text.replace('alttext="\\frac', "")
    assert '<a href="#eq-loss">Equation 1</a>' in text and "(1)" in text
    assert (digest(repository / "nbs"), digest(repository / ".robustnb/runs")) == before  # the sources were only read


def test_result_page(repository):
    "The run's results stand on the page, numbered and captioned; code is folded, progress bars are gone."
    build(repository)
    text = page(repository, "papers/demo/fig1")
    assert "data:image/png;base64" in text and "<td>0.5</td>" in text
    assert '<a href="#fig-noise">Figure 1</a>' in text and "Table 1: Ours" in text
    assert text.count("<details") == text.count("code-fold") > 0 and "1/2" not in text
    assert '<a href="../../12_shift.html#api-shift"><code>shift</code></a>' in text
    assert "profile quick" in text and "took 75 s" in text and "Not run yet" not in text


def test_best_finished_run_is_shown(repository):
    "full beats quick; a failed or killed run is passed over and named."
    run(repository, "full", end_time=None)
    build(repository)
    assert "profile quick" in page(repository, "papers/demo/fig1")
    run(repository, "full")
    build(repository)
    assert (
        "profile full" in page(repository, "papers/demo/fig1")
        and "run failed" not in page(repository, "papers/demo/fig1")
    )
    full = repository / ".robustnb/runs/full/papers/demo/fig1.ipynb"
    full.rename(full.with_name("fig1.failed.ipynb"))
    build(repository)
    assert (
        "profile quick" in page(repository, "papers/demo/fig1")
        and "The last full run failed" in page(repository, "papers/demo/fig1")
    )
    shutil.rmtree(repository / ".robustnb/runs")
    build(repository)
    assert (
        "Not run yet" in page(repository, "papers/demo/fig1")
        and "data:image/png" not in page(repository, "papers/demo/fig1")
    )


def test_run_of_older_code_says_so(repository):
    write(repository / "nbs/papers/demo/fig1.ipynb", *RESULT, cell("code", "more()"))
    build(repository)
    assert "The notebook has changed since this run" in page(repository, "papers/demo/fig1")


def test_front_page_counts_the_verdicts(repository, monkeypatch):
    "The tagged cell becomes the table, from the records of the repository that is built."
    write(
        repository / "nbs/index.ipynb",
        cell("markdown", "# robustnb"),
        cell("markdown", "To come.", tags=["verdicts"]),
    )
    build(repository)
    assert "not run" in page(repository, "index") and "To come." not in page(repository, "index")
    asked = []
    counted = pd.DataFrame(
        [("study", "measured", "fixed", "holds", True)] * 3,
        columns=["paper", "about", "reading", "verdict", "provisional"],
    )
    monkeypatch.setattr(site, "verdicts", lambda store: asked.append(store) or counted)
    build(repository)
    assert "3 hold; all of the 3 provisional" in page(repository, "index")
    assert all(str(repository) in str(vars(store)) for store in asked)


def test_new_notebook_is_on_the_sidebar(repository):
    "A folder that nobody listed is found by the globs, in natural order."
    for n in (10, 2): write(repository / f"nbs/papers/newpaper/table{n}.ipynb", cell("markdown", f"# New table {n}"))
    build(repository)
    text = page(repository, "index")
    assert 0 < text.index("New table 2<") < text.index("New table 10<")


@pytest.mark.parametrize(
    "wrong, message",
    [
        ("[gone](14_gone.ipynb)", "leads nowhere"),
        ("[gone](12_shift.ipynb#gone)", "no such place"),
        ("![a](gone.png)", "missing"),
        ("![a](https://example.org/a.png)", "another host"),
        ("see @fig-gone", "reference not resolved"),
        ("$\\nonsense$", "nonsense"),
    ],
)
def test_unsound_site_is_not_put_in_place(repository, wrong, message):
    "The build stops with the reason, and the site that was there stays."
    build(repository)
    before = digest(repository / "_docs")
    write(repository / "nbs/13_wrong.ipynb", cell("markdown", f"# Wrong\n\n{wrong}"))
    with pytest.raises(site.SiteError, match=message): build(repository)
    assert digest(repository / "_docs") == before


def kill_during(root: Path, owner, name: str, call: int) -> None:
    "Build in a child process that is killed as it calls a function for the given time."
    if (child := os.fork()) == 0:
        real, calls = getattr(owner, name), []

        def deadly(*args, **options):
            calls.append(name)
            if len(calls) == call: os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)

        setattr(owner, name, deadly)
        try: build(root)
        finally: os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_killed_build_leaves_the_old_site(repository):
    "A kill before the move loses nothing; one between its two renames is mended by the next build, even a failing one."
    build(repository)
    before = digest(repository / "_docs")
    kill_during(repository, site, "put_in_place", 1)
    assert digest(repository / "_docs") == before
    kill_during(repository, Path, "rename", 2)
    assert not (repository / "_docs").exists()
    write(repository / "nbs/13_wrong.ipynb", cell("markdown", "# Wrong\n\n[gone](14_gone.ipynb)"))
    with pytest.raises(site.SiteError): build(repository)
    assert digest(repository / "_docs") == before
    (repository / "nbs/13_wrong.ipynb").unlink()
    build(repository)
    assert sorted(p.name for p in repository.glob("*_docs*")) == ["_docs"] and not list(repository.glob(".*_docs*"))


def test_foreign_folders_are_refused(repository):
    (repository / "thesis").mkdir()
    (repository / "thesis/chapter.tex").write_text("years of work")
    with pytest.raises(ValueError, match="no site built by robustnb"): build(repository, out="thesis")
    with pytest.raises(ValueError, match="holds the repository"): build(repository, out="..")
    assert (repository / "thesis/chapter.tex").exists()
    with pytest.raises(ValueError, match="smalldocs"): build(repository, renderer="smaldocs")
    with pytest.raises(FileNotFoundError, match="_quarto.yml"): build(repository / "nbs")


@pytest.mark.parametrize("status", [0, 3])
def test_quarto_is_used_where_it_is(repository, tmp_path_factory, monkeypatch, status):
    "A stand-in for Quarto on the PATH gets the staged folder; its failure is ours."
    bin = tmp_path_factory.mktemp("bin")
    (bin / "quarto").write_text(
        "#!/bin/sh\ntest \"$1\" = render || exit 9\n"
        "cd \"$2\" && test -f _quarto.yml -a -f 12_shift.ipynb -a -f assets/site.css || exit 8\n"
        f"mkdir _docs && echo '<p>by quarto</p>' > _docs/index.html\nexit {status}\n"
    )
    (bin / "quarto").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin}{os.pathsep}{os.environ['PATH']}")
    if status:
        with pytest.raises(site.SiteError, match="status 3"): build(repository, renderer=None)
    else:
        assert "by quarto" in build(repository, renderer=None).read_text()
        staged = json.loads((repository / ".robustnb/site/12_shift.ipynb").read_text())
        assert "@eq-loss" in "".join(c["source"] for c in staged["cells"])  # Quarto numbers for itself


def test_server_answers_this_machine(repository):
    build(repository)
    with served(repository / "_docs") as address:
        assert b"Figure 1" in urllib.request.urlopen(f"{address}/papers/demo/fig1.html").read()
        taken = urlsplit(address).port
        with site.server(repository / "_docs", 0) as other: assert other.server_address[0] == "127.0.0.1"
        with pytest.raises(OSError, match="taken"): site.server(repository / "_docs", taken)
    with pytest.raises(FileNotFoundError, match="robustnb site"): site.server(repository / "nbs", 0)


class served:
    "The site on a free port, for the length of a with statement."

    def __init__(self, out: Path): self.server = site.server(out, 0)

    def __enter__(self) -> str:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()


# ---- in a browser

ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]


CUT_OFF = """() => {  // what stands beyond the right edge and in no box that scrolls
  const scrolls = e => e && e.tagName !== 'MAIN' && (['auto', 'scroll'].includes(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
  const beyond = e => e.getBoundingClientRect().width > 1 && e.getBoundingClientRect().right > innerWidth + 1;
  return [...document.querySelectorAll('main *, footer *, header *')].filter(e => e.checkVisibility() && beyond(e) && !scrolls(e)).map(e => e.outerHTML.slice(0, 80));
}"""


def chromium() -> str:
    "The browser's program; where there is none the test is skipped, or fails when ROBUSTNB_REQUIRE_BROWSER=1."
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        reason = (
            "no Chromium on the PATH (chromium, chromium-browser or google-chrome); "
            "install it to run the browser test"
        )
        if os.environ.get("ROBUSTNB_REQUIRE_BROWSER") == "1": pytest.fail(reason)
        pytest.skip(reason)
    return program


def test_browser_test_is_skipped_only_where_that_is_allowed(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("ROBUSTNB_REQUIRE_BROWSER", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no Chromium"): chromium()
    monkeypatch.setenv("ROBUSTNB_REQUIRE_BROWSER", "1")
    with pytest.raises(pytest.fail.Exception, match="no Chromium"): chromium()


@pytest.fixture(scope="module")
def browser():
    "Headless Chromium."
    program = chromium()
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield running
        running.close()


@pytest.fixture(scope="module")
def whole_site(tmp_path_factory):
    "This repository's own notebooks and runs, and one result that is certain to be there."
    root = tmp_path_factory.mktemp("repository")
    shutil.copy(ROOT / "_quarto.yml", root)
    shutil.copytree(ROOT / "nbs", root / "nbs", ignore=shutil.ignore_patterns(".*"))
    if (ROOT / ".robustnb/runs").exists(): shutil.copytree(ROOT / ".robustnb/runs", root / ".robustnb/runs")
    write(root / "nbs/papers/demo/fig1.ipynb", *RESULT)
    write(root / "nbs/12z_shift.ipynb", *LIBRARY)
    run(root, "quick")
    return build(root).parent


def test_site_in_a_browser(browser, whole_site):
    "Every page loads without an error and from this host alone, with figure, table and links; nothing overflows a phone."
    pages = sorted(p.relative_to(whole_site).as_posix() for p in whole_site.rglob("*.html"))
    with served(whole_site) as address:
        context = browser.new_context(viewport={"width": 390, "height": 844})
        requests, errors, links = [], [], set()
        context.on("request", lambda request: requests.append(request.url))
        tab = context.new_page()
        tab.on(
            "console",
            lambda message: errors.append(f"{tab.url}: {message.text}") if message.type == "error" else None,
        )
        tab.on("pageerror", lambda error: errors.append(f"{tab.url}: {error}"))
        tab.on(
            "requestfailed",  # aborted: we went on
            lambda request: errors.append(f"{request.url} failed") if "ABORTED" not in request.failure else None,
        )
        tab.on(
            "response",
            lambda answer: errors.append(f"{answer.url}: {answer.status}") if answer.status >= 400 else None,
        )
        for name in pages:
            tab.goto(f"{address}/{name}", wait_until="load")
            assert tab.evaluate(CUT_OFF) == [], f"{name} is wider than a phone"
            assert tab.evaluate(
                "[...document.images].every(i => i.complete && i.naturalWidth > 0 && i.naturalHeight > 0)"
            ), f"{name}: a picture is empty"
            links |= set(tab.evaluate("[...document.querySelectorAll('a[href]')].map(a => a.href.split('#')[0])"))
        tab.goto(f"{address}/papers/demo/fig1.html", wait_until="load")
        assert tab.evaluate("document.querySelector('main img').naturalWidth") == 120
        assert tab.locator("main table:visible td").count() == 2
        assert tab.locator("main details[open]").count() == 0  # code is folded
        tab.goto(f"{address}/12z_shift.html", wait_until="load")
        assert tab.locator("main math mfrac").first.bounding_box()["height"] > 0
        context.close()
    assert errors == []
    assert {urlsplit(url).netloc for url in requests if not url.startswith("data:")} == {urlsplit(address).netloc}
    local = {urlsplit(url).path.lstrip("/") or "index.html" for url in links if url.startswith(address)}
    assert {f for f in local if not (whole_site / f).is_file()} == set() and len(local) > 3


def test_search_and_dark_theme(browser, whole_site):
    "Search finds a function; the dark theme is dark, and its choice is kept on the next page."
    with served(whole_site) as address:
        context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
        tab = context.new_page()
        tab.goto(f"{address}/index.html", wait_until="load")
        tab.fill("#quarto-search input", "pixels to the right")
        tab.wait_for_selector(".search-result")
        assert "12z_shift.html" in tab.locator(".search-result").first.get_attribute("href")
        shade = (
            "() => getComputedStyle(document.body).backgroundColor"
            ".match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0) / 3"
        )
        assert tab.evaluate(shade) > 240
        tab.click(".quarto-color-scheme-toggle")
        tab.goto(f"{address}/12z_shift.html", wait_until="load")
        assert tab.evaluate(shade) < 60
        context.close()


def test_a_site_is_current_until_anything_it_is_made_from_changes(tmp_path):
    for name in (
        "nbs/a.ipynb",
        "results/study.jsonl",
        "robustnb/a.py",
        ".robustnb/runs/records/a.ipynb",
        "_quarto.yml",
        "_docs/index.html",
        f"_docs/{site.MARK}",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1000, 2000 if name.startswith("_docs") else 1000))
    assert site.is_current(tmp_path)
    for name in (
        "nbs/a.ipynb", "results/study.jsonl", "robustnb/a.py", ".robustnb/runs/records/a.ipynb", "_quarto.yml"
    ):
        os.utime(tmp_path / name, (3000, 3000))
        assert not site.is_current(tmp_path), name
        os.utime(tmp_path / name, (1000, 1000))
    assert site.is_current(tmp_path)
    (tmp_path / "_docs/index.html").unlink()
    assert not site.is_current(tmp_path)


class Live(HTMLParser):
    "What a browser would run or load: elements, attributes and addresses."
    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag in ("script", "iframe", "object", "embed", "svg", "base", "form"): self.found.append(tag)
        for name, value in attributes:
            address = (value or "").strip().lower()
            if name.startswith("on") or address.startswith(("javascript:", "data:text", "vbscript:")): self.found.append(f"{tag} {name}")


BAD = "<script>alert({})</script><img src=x onerror=alert({})><a href='javascript:alert({})'>x</a>"


def hostile() -> tuple[list, dict]:
    "The executed notebook with what a browser would run wherever something is shown."
    cells, meta = executed("quick")
    bad = iter(BAD.replace("{}", str(n)) for n in range(100, 200))
    cells[0]["source"] = [f"# Figure {next(bad)}\n\n> B {next(bad)}\n\n{next(bad)} [x](javascript:alert(1)) "
                          f"![p](attachment:p.png) [y](https://example.org){{onclick='f()'}}\n\n``` {{=html}}\n{next(bad)}\n```"]
    cells[0]["attachments"] = {"p.png": {"image/png": f'"><{next(bad)}'}}
    kinds = "text/html text/markdown text/latex text/plain image/svg+xml image/png application/javascript".split()
    cells[4]["source"] = [f'#| label: fig-x">{next(bad)}\n#| fig-cap: "Loss {next(bad)}"\nplot("{next(bad)}")']
    cells[4]["outputs"] = [display(**{kind: f'"><svg onload=f()>{next(bad)}'}) for kind in kinds] + [
        {"output_type": "stream", "name": "stdout", "text": [next(bad)]},
        {"output_type": "error", "ename": next(bad), "evalue": next(bad), "traceback": [next(bad)]},
    ]
    cells[5]["outputs"] = [display(**{"text/html": TABLE.replace("one", next(bad))})]
    part = {"missing": next(bad), "total": 1, "experiment": f"`{next(bad)}", "profile": next(bad)}
    meta["papermill"]["end_time"] = next(bad)
    meta["robustnb"] = {"commit": f"`{next(bad)}", "device": next(bad), "seconds": 3, "profile": next(bad), "not_run": [part]}
    return cells, meta


def test_what_a_browser_would_run_is_shown_as_text(repository):
    build(repository)
    usual = sorted(Live(page(repository, "papers/demo/fig1")).found)
    cells, meta = hostile()
    write(repository / ".robustnb/runs/quick/papers/demo/fig1.ipynb", *cells, **meta)
    build(repository)
    shown = page(repository, "papers/demo/fig1")
    assert sorted(Live(shown).found) == usual and shown.count("alert(") > 15  # text
    for other in (repository / "_docs").rglob("*.html"):
        assert not [one for one in Live(other.read_text()).found if one not in usual]
