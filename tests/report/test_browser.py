"""Pages in a real browser: they render, run nothing of the data, and fit narrow screens, in light and dark."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmkd.report.build import report
from tests.report.conftest import PAYLOAD, write_run
from tests.report.engines import compete_folder, evolve_folder

pytestmark = pytest.mark.e2e

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
MEASURE = """<script>addEventListener("load", () => {
  const page = document.documentElement, inside = [...document.querySelectorAll("svg.chart text")].every(t => {
    const a = t.getBoundingClientRect(), b = t.ownerSVGElement.getBoundingClientRect();
    return a.left >= b.left - 1 && a.right <= b.right + 1 && a.bottom <= b.bottom + 1; });
  document.title = JSON.stringify({
    wide: page.scrollWidth - page.clientWidth, high: page.scrollHeight, inside,
    pictures: [...document.images].every(i => i.complete && i.naturalWidth > 0), count: document.images.length,
    maps: [...document.querySelectorAll("svg.maps use")].every(u => u.getBBox().width > 0), owned: document.title });
});</script>"""

ITEMS, PICTURES = 10_000, 2000
FILTER = """<script>{
  const seen = {times: [], ranges: []};
  const note = (work) => {
    const start = performance.now();
    work();
    document.body.getBoundingClientRect();  // with its layout
    seen.times.push(performance.now() - start);
    seen.ranges.push(document.getElementById("range").textContent);
  };
  const set = (field, value) => note(() => {
    field.value = value;
    field.dispatchEvent(new Event("input", {bubbles: true}));
  });
  const [round, direction, outcome] = document.querySelectorAll("select"), search = document.querySelector("input");
  set(outcome, "kept");
  note(() => document.getElementById("after").click());
  set(round, "0");
  set(round, "");
  set(outcome, "");
  set(search, `99:"'><SCRIPT>`);  // of the title or a line, in any case
  addEventListener("load", () => {  // when the pictures of the rows are there, too
    const page = document.documentElement, rows = [...document.querySelectorAll("article.row")];
    const shown = rows.map(row => row.querySelector("img"));
    seen.owned = document.title;
    seen.boxes = [...document.querySelectorAll(".box")].map(b => b.getBoundingClientRect().width /
      b.parentNode.getBoundingClientRect().width);
    seen.pictures = shown.map(i => i !== null && i.complete && i.naturalWidth > 0);
    seen.wide = page.scrollWidth - page.clientWidth;
    document.title = JSON.stringify(seen);
  });
}</script>"""


@pytest.fixture(scope="module")
def browser() -> str:
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser is installed (looked for {', '.join(NAMES)})")
    return found


@pytest.fixture(scope="module")
def page(models, tmp_path_factory) -> Path:
    return report(write_run(tmp_path_factory.mktemp("browser"), models, PAYLOAD))


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    """The page of many items that evolved, on many pictures, with hostile text in all of them."""
    return report(evolve_folder(tmp_path_factory.mktemp("many") / "out", PAYLOAD, ITEMS, PICTURES))


@pytest.fixture(scope="module")
def competed(tmp_path_factory) -> Path:
    return report(compete_folder(tmp_path_factory.mktemp("competed") / "out", PAYLOAD))


def run(browser: str, page: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
        f"--user-data-dir={page.parent / 'browser'}", "--enable-logging=stderr", *arguments, page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env={**os.environ, "TZ": "UTC"}
    )
    assert done.returncode == 0, done.stderr
    return done


def title(dom: str) -> str:
    return unescape(re.search(r"<title>(.*?)</title>", dom, re.DOTALL)[1])


def measured(browser: str, page: Path, width: int, script: str = MEASURE) -> dict:
    """What a script of ours sees in a copy of the page without its policy: only escaping guards that copy."""
    html, removed = POLICY.subn("", page.read_text())
    assert removed == 1
    copy = page.with_name("measured.html")
    copy.write_text(html.replace("</body>", script + "</body>"))
    return json.loads(title(run(browser, copy, f"--window-size={width},900", "--dump-dom").stdout))


def shot(browser: str, page: Path, *arguments: str) -> np.ndarray:
    picture = page.with_name("shot.png")
    run(browser, page, "--window-size=1120,1400", f"--screenshot={picture}", *arguments)
    return np.asarray(Image.open(picture).convert("L"), dtype=float)


def test_the_page_shows_itself_in_light_and_in_dark(browser, page):
    light = shot(browser, page, "--blink-settings=preferredColorScheme=1")
    dark = shot(browser, page, "--blink-settings=preferredColorScheme=0")
    assert np.median(light) > 230
    assert np.median(dark) < 50
    for picture in (light, dark):  # ink on paper: not an empty page
        assert (np.abs(picture - np.median(picture)) > 60).mean() > 0.005


def test_nothing_of_the_data_runs_and_the_browser_has_no_complaint(browser, page):
    done = run(browser, page, "--dump-dom")
    assert title(done.stdout) == "student · mmkd" or title(done.stdout).endswith("/student · mmkd")
    assert "CONSOLE" not in done.stderr


@pytest.mark.parametrize("width", [1120, 500])
def test_everything_fits_and_every_picture_is_there(browser, page, width):
    seen = measured(browser, page, width)
    assert seen["owned"].endswith("/student · mmkd")
    assert seen["wide"] == 0
    assert seen["high"] > 2000
    assert seen["inside"]
    assert seen["pictures"]
    assert seen["count"] > 5
    assert seen["maps"]


def test_the_script_of_a_page_runs_under_its_policy_and_nothing_of_the_data_does(browser, many):
    done = run(browser, many, "--dump-dom")
    assert title(done.stdout).endswith("/out · mmkd")
    assert "CONSOLE" not in done.stderr
    assert done.stdout.count('<article class="card row">') == 50
    assert f"1 to 50 of {ITEMS}" in done.stdout


@pytest.mark.parametrize("width", [1120, 500])
def test_many_items_are_filtered_quickly(browser, many, width):
    seen = measured(browser, many, width, FILTER)
    assert seen["owned"].endswith("/out · mmkd")
    half = ITEMS // 2
    assert seen["ranges"] == [
        f"1 to 50 of {half}",  # kept
        f"51 to 100 of {half}",  # the next leaf
        "none",  # no version of round 0 was kept by a round
        f"1 to 50 of {half}",
        f"1 to 50 of {ITEMS}",
        f"1 to 50 of {ITEMS // 100}",  # the words searched for
    ]
    assert max(seen["times"]) < 1500  # milliseconds, on a machine that may be busy
    assert seen["pictures"] == [True] * 50
    assert seen["boxes"] == pytest.approx([0.4] * 50, abs=0.02)
    assert seen["wide"] == 0


@pytest.mark.parametrize("width", [1120, 500])
def test_the_page_of_a_competition_fits_and_nothing_of_its_data_runs(competed, browser, width):
    done = run(browser, competed, "--dump-dom")
    assert title(done.stdout).endswith("/out · mmkd")
    assert "CONSOLE" not in done.stderr
    assert done.stdout.count('<article class="card row">') == 22
    seen = measured(browser, competed, width)
    assert seen["owned"].endswith("/out · mmkd")
    assert seen["wide"] == 0
    assert seen["inside"]
    assert seen["pictures"]
