"""A bundle as a page: export/web, the bundle and onnxruntime-web in one folder, for any static server or the one here.

No torch.

out/  index.html  app.mjs  ...  bundle/ (the files of its manifest)  ort/ (onnxruntime-web, for one CPU thread)
"""

from __future__ import annotations

import errno
import shutil
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from okdc.bundle.bundle import BundleDir
from okdc.bundle.layout import MANIFEST
from okdc.errors import UsageError
from okdc.recipe import catalog
from okdc.runs import artefacts
from okdc.runs.files import write, writing
from okdc.runs.folders import whole

PAGE = (
    *("index.html", "style.css", "icon.svg"),
    *("app.mjs", "answers.mjs", "bundle.mjs", "camera.mjs", "dom.mjs", "facts.mjs", "model.mjs", "preprocess.mjs"),
    "several.mjs",
)
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
PORT = 8000
INSTALL = "npm install --no-save --ignore-scripts onnxruntime-web@1.30.0"


def lay(bundle: Path, out: Path, runtime: Path | None = None) -> Path:
    """Lay `bundle` and its page into the folder `out`, built aside and moved there whole; a page there is replaced.

    `runtime` is the folder of onnxruntime-web's files, or the package they are in; None: node_modules of the working
    directory, of the runners' folder or of one above. Returns `out`. Raises UsageError where there is no runtime,
    RunError where `bundle` is no bundle or `out` holds something else, CheckFailed where a file is not the manifest's,
    DiskError where nothing can be written.
    """
    opened, files = BundleDir.open(bundle), find_runtime(runtime)
    with whole(out, _is_page, "page of a bundle") as aside, writing(out):
        for folder in ("bundle", "ort"):
            (aside / folder).mkdir()
        for name in PAGE:
            shutil.copyfile(catalog.folder("export") / "web" / name, aside / name)
        for name in RUNTIME:
            shutil.copyfile(files / name, aside / "ort" / name)
        for name in opened.manifest.files:
            (aside / "bundle" / name).parent.mkdir(parents=True, exist_ok=True)
            write(aside / "bundle" / name, opened.content(name))
        artefacts.write(aside / "bundle" / MANIFEST, opened.manifest)  # as checked: the file may be another by now
    return out


def _is_page(folder: Path) -> bool:
    return (folder / PAGE[0]).is_file() and (folder / "bundle" / MANIFEST).is_file()


def find_runtime(named: Path | None) -> Path:
    """The folder of onnxruntime-web's files. Raises UsageError where there is none."""
    package = Path("node_modules") / "onnxruntime-web"
    if named is not None:
        places = [named, named / "dist", named / "onnxruntime-web" / "dist", named / package / "dist"]
    else:
        starts = (Path.cwd(), catalog.folder("export"))
        places = [folder / package / "dist" for start in starts for folder in (start, *start.parents)]
    for place in places:
        if all((place / name).is_file() for name in RUNTIME):
            return place
    where = str(named) if named is not None else "node_modules of this folder or of one above"
    raise UsageError(f"onnxruntime-web is missing: expected {RUNTIME[0]} in {where}", hint=INSTALL)


class PageServer(ThreadingHTTPServer):
    """Serves the folder `page` to browsers of this machine alone: at port 8000, or at any free one where that is taken.

    `serve_forever` answers until an exception ends it, such as KeyboardInterrupt. Raises OSError where no port is free.
    """

    daemon_threads = True  # a browser that keeps its connection open must not keep the program

    def __init__(self, page: Path) -> None:
        handler = partial(_Quiet, directory=str(page))
        try:
            super().__init__(("127.0.0.1", PORT), handler)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            super().__init__(("127.0.0.1", 0), handler)

    @property
    def url(self) -> str:
        return f"http://localhost:{self.server_port}"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing: a line for each file of the page would scroll its address away."""
