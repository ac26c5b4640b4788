"""How far float32 sums drift from the truth as models grow: `python benchmarks/drift.py`.

The published tool takes whole deltas as float32 vectors and reduces them in float32 (torch.corrcoef,
numpy.dot, torch.dist). This runs the same three expressions, and Kinbase's pass, on two correlated
Gaussian deltas of n elements (standard deviation 6e-4, as fine-tunes have) and prints the errors against
sums in float64. Needs 20 bytes an element.
"""

import argparse

import numpy as np
import torch

from kinbase.checkpoint import Checkpoint, Tensor
from kinbase.kinship.plan import Plan
from kinbase.kinship.stream import run


def deltas(n: int, correlation: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two float32 vectors of n elements: a chunk of a million, repeated."""
    generator = np.random.default_rng(seed)
    x, z = generator.standard_normal((2, 1_000_000))
    y = correlation * x + np.sqrt(1 - correlation**2) * z
    repeat = -(-n // 1_000_000)
    return tuple(np.tile((6e-4 * v).astype(np.float32), repeat)[:n] for v in (x, y))


def exact(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """PCC, cosine and distance by float64 sums over pieces."""
    sums = np.zeros(6)
    for at in range(0, len(x), 1 << 20):
        a, b = (v[at : at + (1 << 20)].astype(np.float64) for v in (x, y))
        sums += len(a), a.sum(), b.sum(), a @ a, b @ b, a @ b
    return from_sums(*sums)


def from_sums(n: float, sa: float, sb: float, qa: float, qb: float, ab: float) -> np.ndarray:
    pcc = (ab - sa * sb / n) / np.sqrt((qa - sa**2 / n) * (qb - sb**2 / n))
    return np.array([pcc, ab / np.sqrt(qa * qb), np.sqrt(qa + qb - 2 * ab)])


def published(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The published tool's expressions, as they stand in its metrics/calculate.py."""
    a, b = torch.from_numpy(x), torch.from_numpy(y)
    pcc = torch.corrcoef(torch.stack((a, b), dim=0))[0, 1].item()
    cs = np.sqrt(np.dot(x, y) ** 2 / (np.dot(x, x) * np.dot(y, y)))
    return np.array([pcc, float(cs), torch.dist(a, b).item()])


def ours(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Kinbase's pass over the same bytes."""

    def checkpoint(name: str, values: np.ndarray) -> Checkpoint:
        raw = memoryview(values).cast("B")

        def read(start: int, out: memoryview) -> None:
            out[:] = raw[start : start + len(out)]

        return Checkpoint(name, name, [Tensor("w", "F32", (len(values),), read)])

    base = checkpoint("base", np.broadcast_to(np.float32(0), x.shape).copy())
    (sums,) = run(Plan(base, [checkpoint("x", x), checkpoint("y", y)]))
    return from_sums(len(x), *sums.sum, *sums.sumsq, sums.dot[0, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--elements", default="1e7,1e8,3e8,6e8")
    arguments = parser.parse_args()
    heads = [f"{who} {what}" for who in ("published", "Kinbase") for what in ("pcc", "cs", "ed")]
    print(f"{'elements':>9} {'true pcc':>9}" + "".join(f"{head:>15}" for head in heads))
    for text in arguments.elements.split(","):
        for correlation in (0.05, 0.9):
            x, y = deltas(int(float(text)), correlation)
            truth = exact(x, y)
            tool, own = published(x, y) - truth, ours(x, y) - truth
            tool[2] /= truth[2]
            own[2] /= truth[2]
            print(f"{text:>9} {truth[0]:>9.4f}" + "".join(f"{error:>15.1e}" for error in (*tool, *own)))
    print("errors of pcc and cs are absolute, of ed relative")
    x, y = deltas(1_000_000, -0.9)
    said = [f"{values[1]:.4f}" for values in (exact(x, y), published(x, y), ours(x, y))]
    print("cosine of deltas pulled apart: {}; the published tool says {}, Kinbase {}".format(*said))


if __name__ == "__main__":
    main()
