"""export/web in headless Chromium: the real page, served from this machine, with images dropped into it."""

from __future__ import annotations

import http.server
import json
import re
import shutil
import subprocess
import threading
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from making import write_json
from runners import CHROMIUM, needs_chromium, needs_runtime, put, zoo
from serving import running

from okdc.bundle import web
from okdc.runs.files import read_json

pytestmark = [needs_chromium, needs_runtime]

FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-sync",
    "--disable-extensions", "--disable-background-networking", "--disable-component-update", "--disable-default-apps",
    "--disable-domain-reliability", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]  # fmt: skip
# A page around the page: it does what a person would, and posts what it then sees. The page itself is as it is shipped.
DRIVER = """<!doctype html><iframe width="1000" height="800"></iframe><script type="module">
const frame = document.querySelector("iframe"), inner = () => frame.contentDocument;
const $ = (id) => inner().getElementById(id), text = (id) => $(id).textContent.trim().replace(/\\s+/g, " ");
const tick = () => new Promise((done) => setTimeout(done, 20));
async function settled(...states) {
  do await tick(); while (!states.includes(inner()?.body?.dataset.state));
}
async function open(folder) {
  const loaded = new Promise((done) => (frame.onload = done));
  frame.src = folder + "/index.html";
  await loaded;
  await settled("ready", "error");
}
async function drop(name) {
  const blob = await (await fetch("zoo/" + name)).blob(), there = frame.contentWindow;
  const dataTransfer = new there.DataTransfer();
  dataTransfer.items.add(new there.File([blob], name));
  inner().dispatchEvent(new there.DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
  await settled("ready", "refused");
  return seen();
}
function seen() {
  const rows = [...inner().querySelectorAll("#results li")];
  const top = rows.map((li) => [li.querySelector(".label").textContent, Number(li.dataset.probability)]);
  const shares = rows.map((li) => [li.querySelector(".share").textContent, li.querySelector(".bar").style.width]);
  return { top, shares, status: text("status"), latency: text("latency"), runs: text("runs"), name: text("name") };
}
async function press(element) {
  element.click();
  await settled("ready", "refused");
}
async function attempt(job) {
  try { return String(await job()); } catch (error) { return "refused"; }
}
const { images, broken, elsewhere } = await (await fetch("plan.json")).json();
const found = { dropped: {}, models: {}, operators: {}, broken: {} };
try {
  await open("good");
  found.title = text("title");
  found.facts = text("facts");
  found.choice = !$("choice").hidden;
  for (const name of images) found.dropped[name] = await drop(name);
  found.text = await drop("notes.txt");
  await press(inner().querySelectorAll("#samples button")[1]);
  found.sample = seen();
  await press($("selftest"));
  found.selftest = [text("verdict"), $("verdict").className];
  found.keyboard = [...inner().querySelectorAll("input, button, select")]
    .filter((e) => !e.closest("[hidden]")).map((e) => [e.id || e.title, e.tabIndex, e.disabled]);
  frame.style.width = "360px";
  await tick();
  found.width = inner().documentElement.scrollWidth;
  const there = frame.contentWindow;
  found.fetched = await attempt(() => there.fetch(elsewhere));
  found.evaluated = await attempt(() => there.eval("1"));
  found.posted = await attempt(() => there.navigator.sendBeacon(elsewhere, "x"));
  found.resources = there.performance.getEntriesByType("resource").map((entry) => entry.name);
  for (const model of ["int8", "float16"]) {
    $("model").value = model;
    $("model").dispatchEvent(new there.Event("change"));
    await settled("ready", "refused");
    await press($("selftest"));
    found.models[model] = { ...seen(), verdict: text("verdict"), kind: $("verdict").className };
  }
  await open("operators");
  for (const model of ["float32", "int8", "float16"]) {
    $("model").value = model;
    $("model").dispatchEvent(new frame.contentWindow.Event("change"));
    await settled("ready", "refused");
    await press($("selftest"));
    found.operators[model] = [text("verdict"), $("verdict").className];
  }
  await open("one");
  found.single = [$("choice").hidden, text("facts")];
  await open("apart");
  await press($("selftest"));
  found.apart = [text("verdict"), $("verdict").className];
  for (const name of broken) {
    await open(name);
    found.broken[name] = [text("status"), inner().body.dataset.state];
  }
} catch (error) {
  found.error = String(error.stack);
}
await fetch("found", { method: "POST", body: JSON.stringify(found) });
</script>"""


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    found: dict[str, Any]

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
        self.paths: list[str] = []
        self.done = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.SimpleHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        super().do_GET()

    def do_POST(self) -> None:
        self.server.paths.append(self.path)
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()
        if self.path == "/found":
            self.server.found = json.loads(content)
            self.server.done.set()

    def log_message(self, *_: object) -> None:
        """The tests look at `paths`."""


IMAGES = [
    "wide.png", "tall.png", "grey.png", "palette.png", "one_bit.png", "exact.png", "tiny.png", "turned_6.png",
    "turned_8.png", "lossless.webp", "alpha.png", "grey_alpha.png", "clear.png", "sixteen.png", "turned.jpg",
    "smooth.jpg",
]  # fmt: skip
BROKEN = {
    "missing": "There is no bundle beside this page",
    "newer": "schema 2, this client reads schema 1",
    "tampered": "model.onnx is not the file of the manifest",
    "squeezed": "does not know the input",
    "damaged": "is not JSON",
    "outside": "names a file outside itself",
    "alone": "onnxruntime-web is not in the folder ort/",
}


@pytest.fixture(scope="module")
def drive(shipped: Path, many_operators: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One visit of the browser to all pages: what it saw, what it asked for, what it was served."""
    root = tmp_path_factory.mktemp("served")
    zoo(root / "zoo")
    (root / "zoo" / "notes.txt").write_text("no image")
    web.lay(shipped, root / "good")
    web.lay(many_operators, root / "operators")
    for name in ("one", "apart", *BROKEN):  # spoilt after they were laid: `lay` would refuse them
        shutil.copytree(root / "good", root / name)
    put(root / "one" / "bundle", models={"float32": read_json(shipped / "manifest.json")["models"]["float32"]})
    expected = root / "apart" / "bundle" / "sample" / "expected.json"
    facts = read_json(expected)
    facts["models"]["float32"]["logits"][2][0] += 1e-3
    write_json(expected, facts)
    shutil.rmtree(root / "missing" / "bundle")
    put(root / "newer" / "bundle", schema=2)
    (root / "tampered" / "bundle" / "model.onnx").write_bytes(b"something else")
    put(root / "squeezed" / "bundle", ("input", "resize"), "squeezed")
    (root / "damaged" / "bundle" / "manifest.json").write_text("{")
    put(root / "outside" / "bundle", ("models", "float32", "file"), "../../good/bundle/model.onnx")
    shutil.rmtree(root / "alone" / "ort")
    (root / "drive.html").write_text(DRIVER)
    server, elsewhere = _Server(root), _Server(tmp_path_factory.mktemp("elsewhere"))
    with running(server), running(elsewhere):
        plan = {"images": IMAGES, "broken": list(BROKEN), "elsewhere": f"{elsewhere.address}/leak"}
        write_json(root / "plan.json", plan)
        log = tmp_path_factory.mktemp("log") / "net.json"
        profile = tmp_path_factory.mktemp("profile")
        assert CHROMIUM is not None
        command = [
            CHROMIUM,
            *FLAGS,
            f"--user-data-dir={profile}",
            f"--log-net-log={log}",
            f"{server.address}/drive.html",
        ]
        complaints = tmp_path_factory.mktemp("said") / "stderr"
        with complaints.open("w") as stream:  # a pipe that nobody empties would stop a browser that says much
            browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stream)
        try:
            finished = server.done.wait(300)
        finally:
            browser.terminate()
            try:
                browser.wait(60)  # it writes its log
            except subprocess.TimeoutExpired:
                browser.kill()
                browser.wait()
        said = complaints.read_text(errors="replace")[-2000:]
        assert finished, f"the page did not come to its end after {server.paths[-5:]}\n{said}"
        assert "error" not in server.found, server.found["error"]
        # Chromium itself asks for updates; what a page asks for has that page's address as its initiator.
        lines = [line for line in log.read_text(errors="replace").splitlines() if '"initiator":"http://127' in line]
        asked = {url for line in lines for url in re.findall(r'"url":"([a-z]+://[^"/]*)', line)}
        return server.found | {"leaked": elsewhere.paths, "asked": asked, "address": server.address}


@pytest.fixture(scope="module")
def answers(shipped: Path, script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The Python client's probabilities for the same images, by label."""
    bundle = script.Bundle(shipped)
    files = {path.name: path for path in zoo(tmp_path_factory.mktemp("python") / "zoo")}
    rows = {name: bundle(bundle.read(files[name])[None])[1][0] for name in IMAGES}
    return {name: dict(zip(bundle.labels, map(float, row), strict=True)) for name, row in rows.items()}


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_dropped_in_gets_the_answer_that_python_gives(
    drive: dict[str, Any], answers: dict[str, Any], name: str
) -> None:
    seen, expected = drive["dropped"][name], answers[name]
    assert (seen["status"], seen["name"]) == ("", name)
    # The browser itself lays an image over black and makes 8 bits of 16: a level more or less. So it is with JPEG.
    exact = name not in ("alpha.png", "grey_alpha.png", "clear.png", "sixteen.png", "turned.jpg", "smooth.jpg")
    for label, probability in seen["top"]:
        assert probability == pytest.approx(expected[label], abs=1e-5 if exact else 0.05), label
    assert len(seen["top"]) == 5
    assert seen["top"][0][0] == max(expected, key=lambda label: float(expected[label]))


def test_bars_are_as_long_as_the_shares_beside_them(drive: dict[str, Any]) -> None:
    seen = drive["dropped"]["wide.png"]
    for (_, probability), (share, width) in zip(seen["top"], seen["shares"], strict=True):
        assert float(share.removesuffix(" %")) == pytest.approx(100 * probability, abs=0.051)
        assert float(width.removesuffix("%")) == pytest.approx(100 * probability, abs=0.01)
    assert re.fullmatch(r"[\d.]+ ms", seen["latency"])
    assert re.fullmatch(r", median of \d+ runs", seen["runs"])


def test_the_page_says_which_model_it_holds(drive: dict[str, Any]) -> None:
    assert drive["title"] == "resnet8 · digits"
    assert re.fullmatch(r"10 classes · top-1 [\d.]+ % on 797 test images · \d+ kB", drive["facts"])


def test_the_samples_and_the_selftest_work(drive: dict[str, Any]) -> None:
    assert drive["sample"]["name"] == "sample/1.png"
    said, kind = drive["selftest"]
    assert re.fullmatch(r"Self-test passed: 5 images, max \|d\| \S+ \(allowed \S+\)", said)
    assert kind == "passed"


def test_a_case_that_does_not_come_out_fails_the_selftest(drive: dict[str, Any]) -> None:
    said, kind = drive["apart"]
    assert said.startswith("Self-test FAILED: 5 images, max |d| 1.0e-03")
    assert kind == "failed"


@pytest.mark.parametrize("model", ["int8", "float16"])
def test_another_model_is_chosen_passes_its_selftest_and_answers_anew(drive: dict[str, Any], model: str) -> None:
    seen, before = drive["models"][model], drive["sample"]
    assert (seen["status"], seen["kind"]) == ("", "passed")
    assert seen["verdict"].startswith("Self-test passed: 5 images")
    assert seen["name"] == before["name"], "the image on the page is classified again"
    assert seen["top"] != before["top"]
    assert [label for label, _ in seen["top"]][:1] == [label for label, _ in before["top"]][:1]


@pytest.mark.parametrize("model", ["float32", "int8", "float16"])
def test_a_network_of_many_operators_passes_its_selftest(drive: dict[str, Any], model: str) -> None:
    verdict, kind = drive["operators"][model]
    assert verdict.startswith("Self-test passed: 5 images"), verdict
    assert kind == "passed"


def test_where_there_is_one_model_there_is_no_choice(drive: dict[str, Any]) -> None:
    assert drive["single"] == [True, drive["facts"]]
    assert drive["choice"]


def test_what_is_no_image_is_said_and_the_page_goes_on(drive: dict[str, Any]) -> None:
    assert drive["text"]["status"] == "notes.txt is not an image that this browser can read"
    assert drive["sample"]["status"] == ""


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_with_the_folder_is_said_in_words(drive: dict[str, Any], name: str) -> None:
    said, state = drive["broken"][name]
    assert BROKEN[name] in said
    assert state == "error"


def test_the_page_is_used_by_keyboard_and_fits_a_telephone(drive: dict[str, Any]) -> None:
    assert [name for name, *_ in drive["keyboard"] if not name.startswith("Sample")] == ["file", "model", "selftest"]
    assert len(drive["keyboard"]) == 8
    assert all(index == 0 and not disabled for _, index, disabled in drive["keyboard"])
    assert drive["width"] <= 360


def test_no_request_leaves_the_machine(drive: dict[str, Any]) -> None:
    """By the browser's own log of every request, and because the page may not, even where a script in it would."""
    assert drive["resources"]
    assert all(name.startswith(f"{drive['address']}/good/") for name in drive["resources"])
    assert drive["asked"] == {drive["address"]}
    assert (drive["fetched"], drive["evaluated"], drive["leaked"]) == ("refused", "refused", [])
