"""A headless Chromium driven over its DevTools protocol by a pair of pipes: no driver and no package is needed."""

import base64
import contextlib
import functools
import http.server
import itertools
import json
import os
import select
import shutil
import subprocess
import threading
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
OPTIONS = (
    *("headless=new", "remote-debugging-pipe", "no-sandbox", "disable-gpu", "no-first-run", "hide-scrollbars"),
    *("disable-dev-shm-usage", "disable-extensions", "disable-background-networking", "no-pings"),
)
SECONDS = 60  # that any one answer or condition may take


def found():
    """Give the path of a Chromium, or None; $CHROMIUM names another one."""
    return os.environ.get("CHROMIUM") or next((path for path in map(shutil.which, NAMES) if path), None)


class Browser:
    """One browser with one page. Use it in a `with`."""

    def __init__(self, program, profile):
        """Start it.

        Args:
            program: the path of the program.
            profile: an empty folder for its files.
        """
        read, self._write = os.pipe()
        self._read, write = os.pipe()
        options = [f"--{name}" for name in OPTIONS]
        # Whatever is not served from here does not exist: a page that needs the network fails.
        options += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", f"--user-data-dir={profile}"]
        # The browser reads commands from descriptor 3 and answers on 4.
        command = ["bash", "-c", f'exec "$0" "$@" 3<&{read} 4>&{write}', program, *options, "about:blank"]
        self._process = subprocess.Popen(
            command, pass_fds=(read, write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(read)
        os.close(write)
        self._buffer, self._numbers, self._session, self.errors = b"", itertools.count(1), None, []
        page = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)  # or the clipboard is out of reach

    def __enter__(self):
        """Give the browser."""
        return self

    def __exit__(self, *_):
        """End it."""
        with contextlib.suppress(OSError, RuntimeError, TimeoutError):
            self._session = None
            self.call("Browser.close")
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._write)
        os.close(self._read)

    def call(self, method, **parameters):
        """Send a command and give its result.

        Args:
            method: of the DevTools protocol.
            parameters: of the method.
        """
        message = {"id": next(self._numbers), "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + SECONDS
        while True:
            answer = self._receive(end, method)
            if answer.get("id") == message["id"]:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self._note(answer)

    def _receive(self, end, method):
        while b"\0" not in self._buffer:
            if not select.select([self._read], [], [], max(0, end - time.monotonic()))[0]:
                raise TimeoutError(f"no answer to {method} in {SECONDS} s")
            data = os.read(self._read, 1 << 20)
            if not data:
                raise RuntimeError(f"the browser ended during {method}")
            self._buffer += data
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)

    def _note(self, event):
        """Keep what a page complains of."""
        method, about = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.errors.append(str(about["exceptionDetails"].get("exception", about["exceptionDetails"])))
        elif method == "Log.entryAdded" and about["entry"]["level"] == "error":
            self.errors.append(f"{about['entry']['text']} {about['entry'].get('url', '')}")
        elif method == "Network.requestWillBeSent":
            url = about["request"]["url"]
            if not url.startswith(("http://127.0.0.1:", "data:", "blob:", "about:")):
                self.errors.append(f"a request leaves the site: {url}")

    def run(self, script):
        """Evaluate JavaScript in the page, wait for a promise, and give its value.

        Args:
            script: an expression.
        """
        options = {"returnByValue": True, "awaitPromise": True, "userGesture": True}
        result = self.call("Runtime.evaluate", expression=script, **options)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"].get("exception", {}).get("description", script))
        return result["result"].get("value")

    def until(self, script):
        """Wait until an expression is true, and give its value.

        Args:
            script: JavaScript.
        """
        end, value, error = time.monotonic() + SECONDS, None, None
        while not value:
            if time.monotonic() > end:
                raise TimeoutError(f"still not true after {SECONDS} s: {script} ({error})")
            try:
                value = self.run(script)
            except RuntimeError as problem:  # the page may be on its way to another
                error = problem
            if not value:
                time.sleep(0.05)
        return value

    def look(self, width, *, dark=False, height=900):
        """Set what the page is seen on.

        Args:
            width: of the window, in CSS pixels.
            dark: whether the reader prefers dark colours.
            height: of the window.
        """
        phone = width < 600
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, url):
        """Go to a page and wait until its scripts have run.

        Args:
            url: the address.
        """
        self.call("Page.navigate", url=url)
        self.until(
            f"location.href.split('#')[0] === {json.dumps(url.split('#')[0])} && document.readyState === 'complete'"
        )

    def picture(self, path):
        """Write what is seen as a PNG.

        Args:
            path: the file.
        """
        data = self.call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Print nothing."""


@contextlib.contextmanager
def served(folder):
    """Serve a folder on this machine; gives its address, without a slash at the end.

    Args:
        folder: the built site.
    """
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
