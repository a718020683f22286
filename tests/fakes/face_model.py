"""A tiny face model with everything a real one has: mirror map, UV, bases, landmarks, regions.

The shape is half an elliptic cylinder, 25 rows x 21 columns of vertices, with a nose, eye sockets
and a chin. It looks nothing like a person, but left, right, up, front and all the conventions of
core hold. ``python -m tests.fakes.face_model FILE.npz`` writes it to disk.
"""

import sys
from pathlib import Path

import numpy as np

from core.landmarks import MIRROR

ROWS, COLUMNS = 25, 21
HALF_ANGLE = np.radians(85)
HALF_WIDTH, DEPTH, HALF_HEIGHT = 72.0, 85.0, 105.0  # millimetres
BORDER = 0.04  # of the UV map, left free on each side

# Half of the landmarks, millimetres: iBUG index of the point with x >= 0 (subject's left), x, y.
LANDMARKS = {
    16: (69, 22), 15: (68, 2), 14: (66, -18), 13: (62, -38), 12: (54, -56), 11: (43, -70), 10: (29,
    -80), 9: (15, -86), 8: (0, -88), 22: (12, 48), 23: (22, 53), 24: (33, 54), 25: (44, 51), 26:
    (53, 44), 27: (0, 32), 28: (0, 21), 29: (0, 10), 30: (0, -1), 33: (0, -12), 34: (6, -11), 35:
    (12, -9), 42: (18, 30), 43: (26, 34), 44: (36, 34), 45: (44, 29), 46: (36, 26), 47: (26, 26),
    54: (25, -38), 53: (15, -33), 52: (6, -31), 51: (0, -32), 55: (16, -45), 56: (7, -48), 57: (0,
    -49), 64: (21, -38), 63: (7, -37), 62: (0, -37), 65: (7, -40), 66: (0, -41),
}  # fmt: skip


def face_model_arrays(
    identity: int = 8, expression: int = 5, albedo: int = 4, seed: int = 0
) -> dict[str, np.ndarray]:
    """The arrays of core.face_models.model's .npz."""
    rng = np.random.default_rng(seed)
    across, down = np.meshgrid(np.linspace(-1, 1, COLUMNS), np.linspace(-1, 1, ROWS))
    across, down = across.ravel(), down.ravel()
    uv = (np.stack([across, down], -1) * (1 - 2 * BORDER) + 1) / 2
    mean = _surface(across, down)
    mirror = np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS)[:, ::-1].ravel()
    triangles = _triangles()
    landmark_vertices, landmark_weights = _landmarks(mean, triangles, mirror)

    def smooth(count: int, amplitude: float) -> np.ndarray:
        """Random sums of low frequencies, three quarters of them made symmetric."""
        i, j = np.meshgrid(np.arange(4), np.arange(4))
        waves = np.cos(np.pi * (across[:, None] + 1) / 2 * i.ravel()) * np.cos(
            np.pi * (down[:, None] + 1) / 2 * j.ravel()
        )
        fields = np.einsum("nw,kwc->knc", waves, rng.normal(size=(count, 16, 3)))
        reflected = fields[:, mirror] * [-1, 1, 1]
        fields = 0.75 * (fields + reflected) / 2 + 0.25 * fields
        return amplitude * fields / fields.std((1, 2), keepdims=True)

    mouth = np.exp(-((mean[:, 0] / 30) ** 2) - ((mean[:, 1] + 45) / 25) ** 2)
    brows = np.exp(-(((np.abs(mean[:, 0]) - 33) / 15) ** 2) - ((mean[:, 1] - 50) / 6) ** 2)
    lips = np.exp(-((mean[:, 0] / 22) ** 4) - ((mean[:, 1] + 40) / 9) ** 4)
    skin = np.array([0.76, 0.57, 0.47]) + 0.05 * down[:, None]
    colour = skin * (1 - 0.5 * brows[:, None]) - lips[:, None] * [0.05, 0.2, 0.15]
    face = (np.abs(across) < 0.85) & (np.abs(down) < 0.9)
    parts = {"eyes": (31, 30, 16, 12), "nose": (0, 10, 16, 30), "lips": (0, -41, 30, 14)}
    regions = {
        f"region_{name}": (np.abs(np.abs(mean[:, 0]) - x) < wide) & (np.abs(mean[:, 1] - y) < high)
        for name, (x, y, wide, high) in parts.items()  # millimetres
    }
    return {
        "version": np.array(1),
        "name": np.array("fake"),
        "source": np.array("tests/fakes/face_model.py"),
        "licence": np.array("MIT"),
        "mean": mean.astype(np.float32),
        "triangles": triangles,
        "identity_basis": smooth(identity, 2.0).astype(np.float32),
        "expression_basis": (smooth(expression, 3.0) * mouth[:, None]).astype(np.float32),
        "expression_names": np.array([f"expression{k}" for k in range(expression)]),
        "albedo_mean": colour.astype(np.float32),
        "albedo_basis": (smooth(albedo, 0.04) * [1, 0.8, 0.7]).astype(np.float32),
        "uv": uv.astype(np.float32),
        "mirror": mirror,
        "landmark_vertices": landmark_vertices,
        "landmark_weights": landmark_weights.astype(np.float32),
        "region_face": face,
        **regions,
    }


def write(path: Path, **sizes: int) -> Path:
    """Write the model as .npz."""
    np.savez(path, **face_model_arrays(**sizes))
    return path


def _surface(across: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Points of the grid in [-1, 1]^2, model frame; the origin is inside the head."""
    angle = across * HALF_ANGLE
    taper = 1 - 0.25 * np.clip(down, 0, 1) ** 2 - 0.1 * np.clip(-down, 0, 1) ** 2
    x, y = HALF_WIDTH * taper * np.sin(angle), -HALF_HEIGHT * down
    z = DEPTH * taper * np.cos(angle) - 45
    z = z + 24 * np.exp(-((x / 11) ** 2) - ((y - 2) / 18) ** 2)  # nose
    z = z - 6 * np.exp(-(((np.abs(x) - 31) / 13) ** 2) - ((y - 30) / 9) ** 2)  # eye sockets
    z = z + 6 * np.exp(-((x / 18) ** 2) - ((y + 78) / 14) ** 2)  # chin
    points = np.stack([x, y, z], -1)
    points[across == 0, 0] = 0
    return points


def _triangles() -> np.ndarray:
    """Two counter-clockwise triangles a cell; the diagonals of the halves mirror each other."""
    index = np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS)
    a, b = index[:-1, :-1], index[:-1, 1:]  # upper left, upper right
    c, d = index[1:, :-1], index[1:, 1:]  # lower left, lower right
    falling = np.stack([np.stack([a, c, d], -1), np.stack([a, d, b], -1)], 2)
    rising = np.stack([np.stack([a, c, b], -1), np.stack([b, c, d], -1)], 2)
    half = (COLUMNS - 1) // 2
    return np.concatenate([falling[:, :half], rising[:, half:]], 1).reshape(-1, 3)


def _landmarks(
    mean: np.ndarray, triangles: np.ndarray, mirror: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Three vertices and weights for each landmark: where LANDMARKS is seen from the front."""
    vertices, weights = np.zeros((68, 3), np.int64), np.zeros((68, 3))
    a, b, c = (mean[triangles[:, k], :2] for k in range(3))
    for point, (x, y) in LANDMARKS.items():
        ab, ac, ap = b - a, c - a, np.array([x, y]) - a
        area = ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0]
        wb = (ap[:, 0] * ac[:, 1] - ap[:, 1] * ac[:, 0]) / area
        wc = (ab[:, 0] * ap[:, 1] - ab[:, 1] * ap[:, 0]) / area
        candidates = np.stack([1 - wb - wc, wb, wc], -1)
        best = int(candidates.min(-1).argmax())
        vertices[point], weights[point] = triangles[best], candidates[best].clip(0)
        weights[point] /= weights[point].sum()
        if MIRROR[point] != point:
            vertices[MIRROR[point]], weights[MIRROR[point]] = (
                mirror[vertices[point]],
                weights[point],
            )
    return vertices, weights


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
