"""Metadata of a thousand repositories over loopback, beside the same requests sent by a bare client in a loop.

    python benchmarks/hub.py [--repos 1000] [--latency 0]

The server is a process of its own (tests/hub_server.py). The bare loop is huggingface_hub's session in as many
threads, sending the requests that a node needs (model, card, config, head of the weights through its redirect) and
doing nothing with the answers; the import reads, checks and stores them. Each row is a process of its own, so that
its memory is its own; `client` and `server` are milliseconds of processor time a model. `again` imports the same
sources; `listing` walks them as children of their base.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


def serve(pipe: Connection, repos: int, latency: float) -> None:
    """Serve `repos` models and their base until told to stop; tell requests, bytes and own seconds when asked."""
    from families import family_weights
    from hub_server import Hub
    from safetensors.torch import save

    weights = save(family_weights()["ft_a"])
    with Hub(latency, page=100) as hub:
        config = json.dumps({"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False}).encode()
        hub.put("bench/base", {"config.json": config, "model.safetensors": weights})
        for i in range(repos):
            card = f"---\nbase_model: bench/base\nlicense: mit\ntags: [n{i}]\n---\n{'text ' * 200}\n".encode()
            files = {"config.json": config, "README.md": card, "model.safetensors": weights}
            hub.put(f"bench/m{i:04}", files)
        pipe.send(hub.url)
        before = time.process_time()
        while pipe.recv() == "count":
            asked = [seen for seen in hub.seen if "agent-harnesses" not in seen.path]
            pipe.send((len(asked), sum(seen.nbytes for seen in asked), time.process_time() - before))
            hub.seen.clear()
            before = time.process_time()


def bare(repos: int) -> None:
    """The requests and nothing else."""
    from huggingface_hub import HfApi, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    from kinbase.importers import ranges
    from kinbase.importers.hub import client as hub_client

    endpoint = os.environ["HF_ENDPOINT"]
    api, headers = HfApi(endpoint=endpoint), build_hf_headers()

    def one(i: int) -> None:
        name = f"bench/m{i:04}"
        info = api.model_info(name, expand=hub_client.SAID)  # type: ignore[arg-type]
        for file in ("config.json", "README.md", "model.safetensors"):
            last = ranges.HEAD - 1 if file.endswith("safetensors") else 10 << 20
            url = hf_hub_url(name, file, revision=info.sha, endpoint=endpoint)
            hf_raise_for_status(get_session().get(url, headers=headers | {"Range": f"bytes=0-{last}"}))

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(one, range(repos)))


def worker(what: str, repos: int, path: str) -> None:
    """One row, in this process: seconds, those of the processor, and peak memory as JSON."""
    import huggingface_hub.hf_api  # noqa: F401 - not part of what is compared

    import kinbase

    started, before = time.perf_counter(), time.process_time()
    if what == "bare":
        bare(repos)
    else:
        db = kinbase.open(path)
        if what == "listing":
            found = db.import_(["hf:bench/base"], children=True, limit=repos)
        else:
            found = db.import_([f"hf:bench/m{i:04}" for i in range(repos)], metadata_only=True)
        assert not found.filter(found["status"] == "failed").height, found
    seconds, busy = time.perf_counter() - started, time.process_time() - before
    print(json.dumps([seconds, busy, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repos", type=int, default=1000)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds added to every answer")
    parser.add_argument("--row", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row:
        worker(arguments.row[0], arguments.repos, arguments.row[1])
        return
    ours, theirs = get_context("spawn").Pipe()
    server = get_context("spawn").Process(target=serve, args=(theirs, arguments.repos, arguments.latency))
    server.start()
    try:
        url = ours.recv()
        with tempfile.TemporaryDirectory() as folder:
            environment = {
                **os.environ,
                "HF_ENDPOINT": url,
                "HF_HOME": folder,
                "HF_HUB_DISABLE_TELEMETRY": "1",
            }
            environment.pop("HF_TOKEN", None)
            print(f"{'':>8} {'repos':>6} {'s':>7} {'client':>7} {'server':>7} {'requests':>9} {'MB':>6}"
                  f" {'per s':>7} {'peak MiB':>9}")  # fmt: skip
            few = arguments.repos // 4
            rows = [
                ("bare", arguments.repos),  # the server's first answers cost it more: the second one counts
                ("import", few),
                ("import", arguments.repos),
                ("bare", arguments.repos),
            ]
            rows += [("again", arguments.repos), ("listing", arguments.repos)]
            for number, (what, repos) in enumerate(rows):
                path = f"{folder}/{number if what == 'import' else 2}.duckdb"
                command = [sys.executable, __file__, "--repos", str(repos), "--row", what, path]
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
                if done.returncode:
                    sys.exit(done.stderr)
                seconds, busy, peak = json.loads(done.stdout.splitlines()[-1])
                ours.send("count")
                requests, nbytes, served = ours.recv()
                print(
                    f"{what:>8} {repos:6} {seconds:7.2f} {1e3 * busy / repos:7.2f} {1e3 * served / repos:7.2f}"
                    f" {requests:9} {nbytes / 1e6:6.1f} {requests / seconds:7.0f} {peak:9.0f}"
                )
    finally:
        ours.send("stop")
        server.join(5)
        server.terminate()


if __name__ == "__main__":
    main()
