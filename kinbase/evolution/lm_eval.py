"""lm-evaluation-harness on one checkpoint; runs in a worker process, with the extra lm-eval installed."""

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def evaluate(
    folder: str, out: str, *, tasks: list[str], include_path: str | None = None, **settings: Any
) -> str:
    """Evaluate the Hugging Face model in `folder` and write lm-eval's results into the folder `out`; the file's path.

    `settings` are keyword arguments of lm_eval.simple_evaluate (num_fewshot, limit, batch_size, device, ...);
    `include_path` is a folder of task definitions. Raises RuntimeError when lm-eval is not installed.
    """
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
        from lm_eval.utils import handle_non_serializable
    except ImportError as error:
        raise RuntimeError("the evaluator lm_eval needs its extra: pip install 'kinbase[lm-eval]'") from error
    given = dict(settings.pop("model_args", {}))
    found = lm_eval.simple_evaluate(
        model=settings.pop("model", "hf"),
        model_args={"pretrained": folder, **given},
        tasks=tasks,
        task_manager=TaskManager(include_path=include_path),
        log_samples=False,
        bootstrap_iters=settings.pop("bootstrap_iters", 1000),
        **settings,
    )
    when = datetime.now(UTC)
    found["date"] = time.time()
    path = Path(out, f"results_{when:%Y-%m-%dT%H-%M-%S.%f}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(found, default=handle_non_serializable, indent=2) + "\n")
    part.replace(path)
    return str(path)
