"""A process that calls functions for a run: `python -m kinbase.evolution.worker FOLDER`.

One line of JSON in ({"function": "module:name", "arguments": [...], "settings": {...}}), one out ({"result": ...}
or {"error": ...}). A function that hangs or crashes takes this process with it and not the run; whatever it
prints goes to stderr. Imports are paid once a run.
"""

import importlib
import json
import os
import sys


def main() -> None:
    """Answer until stdin ends. The configuration's folder is where modules are found first."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the function prints, C libraries included
    sys.path.insert(0, sys.argv[1])
    for line in sys.stdin:
        request = json.loads(line)
        try:
            module, _, name = request["function"].partition(":")
            function = getattr(importlib.import_module(module), name)
            answer = {"result": function(*request["arguments"], **request["settings"])}
            text = json.dumps(answer)
        except Exception as error:  # the function is anybody's, and so are its errors
            text = json.dumps({"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"})
        answers.write(text + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
