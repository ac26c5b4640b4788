"""A process that calls functions for a run: `python -m kinbase.evolution.worker FOLDER`.

One line of JSON in ({"function": "module:name", "arguments": [...], "settings": {...}}), one out ({"result": ...,
"seconds": ...} or {"error": ...}). A function that hangs or crashes takes this process with it and not the run;
whatever it prints goes to stderr. Imports are paid once a run. When the run ends, so does this process, in the
middle of a function too: nobody waits for its answer, and a resumed run starts another one.
"""

import importlib
import json
import os
import queue
import signal
import sys
import threading
import time
from typing import TextIO


def main() -> None:
    """Answer until stdin ends. The configuration's folder is where modules are found first."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    asked = os.fdopen(os.dup(0), encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # what the function starts may read stdin
    os.dup2(2, 1)  # what the function prints, C libraries included
    sys.path.insert(0, sys.argv[1])
    requests: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=[asked, requests], daemon=True).start()
    while True:
        request = json.loads(requests.get())
        started = time.monotonic()
        try:
            module, _, name = request["function"].partition(":")
            function = getattr(importlib.import_module(module), name)
            result = function(*request["arguments"], **request["settings"])
            text = json.dumps({"result": result, "seconds": time.monotonic() - started})
        except Exception as error:  # the function is anybody's, and so are its errors
            text = json.dumps({"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"})
        answers.write(text + "\n")
        answers.flush()


def _listen(asked: TextIO, requests: "queue.SimpleQueue[str]") -> None:
    """Pass on what is asked; at the end of it, end the process, whatever it is doing, and what it started."""
    for line in asked:
        requests.put(line)
    if os.getpgrp() == os.getpid():  # as the run starts it
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(0)


if __name__ == "__main__":
    main()
