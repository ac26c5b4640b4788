"""A line of tiny models and a run over it, whose best mixture can be worked out on paper."""

import json

import families

import kinbase

PLACES = {"a": 0.0, "b": 4.0, "c": 10.0}
SHAPES = {
    "model.embed_tokens.weight": (16, 8),
    "model.layers.0.mlp.up_proj.weight": (8, 8),
    "lm_head.weight": (16, 8),
}
EVALUATOR = """
    import json, sys
    from pathlib import Path
    from safetensors.numpy import load_file

    def near(folder, log=None):
        x = float(load_file(Path(folder, "model.safetensors"))["lm_head.weight"][0, 0])
        with Path(log or Path(__file__).with_name("calls")).open("a") as calls:
            calls.write(Path(folder).name + "\\n")
        return {"near": {"acc": -abs(x - 6.3), "acc_stderr": 0.0}}
"""


RUN = """
strategy: kinship
models: [a, b, c]
evaluate: {by: python, function: "evaluator:near"}
merge: {method: linear}
stop: {generations: 3, kinship: null}
"""


def write_model(folder, weights):
    families.write_safetensors(folder / "model.safetensors", weights, {"format": "pt"})
    (folder / "config.json").write_text(
        json.dumps(
            {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1, "tie_word_embeddings": False}
        )
    )


def evolved(place, text=None, name=None):
    if text is not None:
        (place / "run.yaml").write_text(text)
    db = kinbase.open(place / "kin.duckdb")
    return db, db.evolve(place / "run.yaml", name=name)


ROWS = """
select run, generation, child, parents, role, method, seed, reason, kinship, status, problem, score, kept, folder,
    deleted, position
from offspring order by generation, position
"""


def story(db):
    """All that a run leaves behind, times aside."""
    return {
        "offspring": db.sql(ROWS).rows(),
        "generations": db.sql("select * exclude (ended_at) from generations order by all").rows(),
        "runs": db.sql("select * exclude (started_at, ended_at) from runs").rows(),
        "models": db.sql("select name, digest, base, relation, bytes from models order by name").rows(),
        "lineage": db.sql("from lineage order by all").rows(),
        "scores": db.sql(
            "select model, benchmark, metric, value, source from scores_all order by all"
        ).rows(),
        "kinship": db.sql("select * from kinship order by model_a, model_b").rows(),
    }


def refused(place, cli):
    """The one line that the command says when a run is refused or stops."""
    run = cli("evolve", "run.yaml")
    assert run.returncode == 1, run.stderr
    lines = [line for line in run.stderr.splitlines() if line.startswith("kinbase: ")]
    assert len(lines) == 1, run.stderr
    assert "Traceback" not in run.stderr
    return lines[0]
