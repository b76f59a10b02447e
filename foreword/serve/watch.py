"""The watch on the store: what vanished or was replaced leaves the pool, and what is new is told in the log."""

import threading
import time

from foreword.serve.service import Service

LEAST_REST = 20
"""The watch rests this many times as long as a look took: a store of ten thousand costs it 5 % of a core at most."""


class Watch:
    """A thread that looks at the store every few seconds. Requests do not need it: they look for themselves."""

    def __init__(self, service: Service, every_sec: float) -> None:
        self._service, self._every_sec = service, every_sec
        self._seen: dict[str, tuple[int, ...]] = service.catalog.stamps()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="foreword-watch", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, and wait for a look that is under way."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> tuple[list[str], list[str]]:
        """Look once; return the forewords (`owner/name`) that are new or changed, and the pool's ids that left it."""
        now = self._service.catalog.stamps()
        changed = sorted(name for name, stamp in now.items() if self._seen.get(name) != stamp)
        self._seen = now
        known = self._service.known()
        stale = {key for key, entry in known.items() if not self._service.catalog.unchanged(entry)}
        # A foreword may have become known while the disk was looked at: a request is about to use it.
        gone = self._service.forget([key for key in self._service.known() if key not in stale])
        for event, names in (("forewords changed", changed), ("forewords unloaded", gone)):
            if names:
                self._service.log.info(event, extra={"forewords": names[:100], "count": len(names)})
        return changed, gone

    def _run(self) -> None:
        rest_sec = self._every_sec
        while not self._stop.wait(rest_sec):
            begun = time.monotonic()
            try:
                self.look()
            except Exception:  # a store on a file system with moods must not end the watch
                self._service.log.exception("the watch failed; it goes on")
            rest_sec = max(self._every_sec, LEAST_REST * (time.monotonic() - begun))
