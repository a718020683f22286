"""Is it a face, in our units and frame? What is measured of a face model, and what is plausible.

Bounds are ours: wide enough for every published model that is laid out as ``core`` wants it, tight
enough for the usual mistakes (metres, clockwise triangles, x or v reversed, colours to 255, indices
counted from 1). What only makes a model worse is a warning; a failure means that results would be
nonsense, and importers then write nothing.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from core.face_models.model import FaceModel
from core.landmarks import LEFT_EYE, MIRROR, NOSE_TIP, RIGHT_EYE
from core.rasterize import rasterize

Level = Literal["ok", "warning", "failure"]
Range = tuple[float | int, float | int]
PEOPLE = 16  # random ones whose reflectance is looked at
MAP_SIZE = 1024  # texels a side on which overlaps of the UV map are counted
NO_AREA = 1e-8  # mm^2

# Chains of landmarks: along each, a coordinate grows (+1) or falls (-1), on every face.
X, Y = 0, 1
RISING = {
    "jaw, down to the chin": (range(9), Y, -1),
    "jaw, up from the chin": (range(8, 17), Y, 1),
    "brows": (range(17, 27), X, 1),
    "bridge of the nose": (range(27, 31), Y, -1),
    "nostrils": (range(31, 36), X, 1),
    "corners of the eyes": ((0, 36, 39, 27, 42, 45, 16), X, 1),
    "corners of the mouth": ((0, 48, 60, 64, 54, 16), X, 1),
    "lips": ((33, 51, 62, 66, 57, 8), Y, -1),
    "right eye": ((19, 37, 41, 31), Y, -1),
    "left eye": ((24, 44, 46, 35), Y, -1),
}


@dataclass(frozen=True)
class Finding:
    """One thing that was measured.

    Attributes:
        name: what was looked at, a few words.
        level: "failure" makes results nonsense.
        text: one sentence with figures.
    """

    name: str
    level: Level
    text: str


def health(model: FaceModel) -> list[Finding]:
    """Everything that can be said of a model without data, in the order of a reader's questions.

    Millimetres, model frame. Random numbers are always the same, and the global generator is left
    alone.
    """
    return [
        _size(model),
        *_orientation(model),
        _order(model),
        _winding(model),
        _triangles(model),
        _edges(model),
        _vertices(model),
        _landmark_symmetry(model),
        _mirror(model),
        *_uv(model),
        *_identity(model),
        _expressions(model),
        *_albedo(model),
        _regions(model),
        _notes(model),
        _memory(model),
    ]


def table(findings: list[Finding]) -> str:
    """The findings as text, one line each."""
    width = max(len(finding.name) for finding in findings)
    return "\n".join(f"{f.level:<7}  {f.name:<{width}}  {f.text}" for f in findings)


def _graded(value: float | int, good: Range, possible: Range) -> Level:
    if good[0] <= value <= good[1]:
        return "ok"
    return "warning" if possible[0] <= value <= possible[1] else "failure"


def _points(model: FaceModel) -> Float[Tensor, "68 3"]:
    return model.landmarks(model.mean).detach().cpu().double()


def _mean(model: FaceModel) -> Float[Tensor, "n 3"]:
    return model.mean.detach().cpu().double()


def _eyes(points: Float[Tensor, "68 3"]) -> tuple[Tensor, Tensor]:
    """The centres of the subject's right and left eye."""
    return points[list(RIGHT_EYE)].mean(0), points[list(LEFT_EYE)].mean(0)


def _size(model: FaceModel) -> Finding:
    points = _points(model)
    right, left = _eyes(points)
    between, across = float((left - right).norm()), float((points[45] - points[36]).norm())
    levels = _graded(between, (50, 80), (35, 110)), _graded(across, (75, 105), (55, 140))
    unit = f"the eyes' centres lie {between:.3g} mm apart, wanted 50 to 80"
    return Finding(
        "unit", _worst(*levels), f"{unit}; their outer corners {across:.3g} mm, wanted 75 to 105"
    )


def _worst(*levels: Level) -> Level:
    found: Level = "ok"
    for level in levels:
        if "failure" in (level, found):
            found = "failure"
        elif level == "warning":
            found = level
    return found


def _orientation(model: FaceModel) -> list[Finding]:
    points = _points(model)
    right, left = _eyes(points)
    mouth = (points[48] + points[54]) / 2
    x = (left - right) / (left - right).norm().clamp(min=1e-12)
    up = (left + right) / 2 - mouth
    y = up / up.norm().clamp(min=1e-12)
    plane = torch.stack([right, left, mouth]).mean(0)
    forward = float((points[NOSE_TIP] - plane)[2])
    side, top = float(x[0]), float(y[1])
    return [
        Finding(
            "x axis",
            _graded(side, (0.98, 1.01), (0.8, 1.01)),
            f"from the subject's right eye to the left is {_degrees(side)} from x, wanted 0",
        ),
        Finding(
            "y axis",
            _graded(top, (0.9, 1.01), (0.7, 1.01)),
            f"from the mouth to the eyes is {_degrees(top)} from y, wanted at most 25",
        ),
        Finding(
            "z axis",
            _graded(forward, (5, 60), (1, 100)),
            f"the tip of the nose is {forward:.3g} mm before eyes and mouth (z), wanted 5 to 60",
        ),
    ]


def _degrees(cosine: float) -> str:
    return f"{torch.rad2deg(torch.acos(torch.tensor(cosine).clamp(-1, 1))):.0f} degrees"


def _order(model: FaceModel) -> Finding:
    points = _points(model)
    wrong = [
        name
        for name, (chain, axis, sign) in RISING.items()
        if (sign * points[list(chain), axis].diff() <= 0).any()
    ]
    level: Level = "ok" if not wrong else "warning" if len(wrong) < 3 else "failure"
    text = f"out of order along {', '.join(wrong)}" if wrong else "follow each other as on a face"
    return Finding("landmarks", level, f"the landmarks (iBUG's 68, from 0) {text}")


def _areas(model: FaceModel) -> Float[Tensor, "t 3"]:
    """Twice the area of each triangle, along its normal, mm^2."""
    a, b, c = _mean(model)[model.triangles.cpu()].unbind(1)
    return torch.linalg.cross(b - a, c - a)


def _sides(model: FaceModel) -> Int[Tensor, "e 2"]:
    """The three sides of each triangle, in its direction."""
    triangles = model.triangles.cpu()
    return torch.cat([triangles[:, [k, (k + 1) % 3]] for k in range(3)])


def _numbers(rows: Int[Tensor, "r c"], count: int) -> Int[Tensor, " r"]:
    """A number for each row of vertex indices, equal for equal rows; sorts faster than rows."""
    place = torch.tensor([count**k for k in range(rows.shape[1])])  # fits for 2 million vertices
    return (rows * place).sum(-1)


def _winding(model: FaceModel) -> Finding:
    """Seen from the front, the face's triangles run counter-clockwise."""
    inside = model.region("face").cpu()[model.triangles.cpu()].all(-1)
    area = _areas(model)[inside, 2]
    share = float(area.clamp(min=0).sum() / area.abs().sum().clamp(min=1e-12))
    directed = _numbers(_sides(model), len(model.mean))
    twice = len(directed) - len(torch.unique(directed))
    level = _graded(share, (0.85, 1.0), (0.6, 1.0))
    if twice:
        level = _worst(level, _graded(twice / len(directed), (0, 0.01), (0, 0.1)), "warning")
    return Finding(
        "winding",
        level,
        f"{share:.1%} of the face's area, seen from the front, is counter-clockwise, wanted over "
        f"85 %; {twice} edges run twice in one direction",
    )


def _triangles(model: FaceModel) -> Finding:
    triangles = model.triangles.cpu()
    count = len(triangles)
    flat = int((_areas(model).norm(dim=-1) / 2 <= NO_AREA).sum())
    twice = count - len(torch.unique(_numbers(triangles.sort(-1).values, len(model.mean))))
    share = (flat + twice) / max(count, 1)
    level = _graded(share, (0, 0), (0, 0.1)) if count else "failure"
    return Finding(
        "triangles", level, f"{count} triangles; {flat} without area, {twice} there before"
    )


def _edges(model: FaceModel) -> Finding:
    sides = _numbers(_sides(model).sort(-1).values, len(model.mean))
    sharers = torch.unique(sides, return_counts=True)[1]
    many, border = int((sharers > 2).sum()), int((sharers == 1).sum())
    level = _graded(many / max(len(sharers), 1), (0, 0), (0, 0.05))
    return Finding(
        "edges",
        level,
        f"{len(sharers)} edges; {many} of more than two triangles, {border} on a border",
    )


def _vertices(model: FaceModel) -> Finding:
    triangles, count = model.triangles.cpu(), len(model.mean)
    used = torch.zeros(count, dtype=torch.bool)
    used[triangles.flatten()] = True
    start, end = _sides(model).T.numpy()
    graph = coo_matrix((np.ones(len(start), bool), (start, end)), (count, count))
    label = torch.from_numpy(connected_components(graph, directed=False)[1])
    sizes = torch.bincount(label[used])
    sizes = sizes[sizes > 0].sort(descending=True).values
    parts, free = len(sizes), count - int(used.sum())
    carried = model.landmark_weights.cpu() > 1e-6
    loose = int((~used[model.landmark_vertices.cpu()] & carried).any(-1).sum())
    level = _worst(
        _graded(free / count, (0, 0), (0, 0.5)),
        _graded(parts, (1, 20), (1, count)),
        "failure" if loose else "ok",
    )
    largest = float(sizes[0]) / count if parts else 0.0
    text = f"{count} vertices; {free} in no triangle; {parts} parts, the largest has {largest:.1%}"
    return Finding("vertices", level, text + (f"; {loose} landmarks lie in none" if loose else ""))


def _landmark_symmetry(model: FaceModel) -> Finding:
    points = _points(model)
    middle = float((points[:, 0] + points[list(MIRROR), 0]).mean() / 2)
    off = (_reflected(points[list(MIRROR)], middle) - points).norm(dim=-1)
    worst = int(off.argmax())
    moved = model.landmarks(model.mean[model.mirror]).detach().cpu().double()
    apart = (moved[list(MIRROR)] - points).norm(dim=-1)
    level = _worst(
        _graded(float(off.max()), (0, 4), (0, 15)),
        _graded(float(apart.max()), (0, 4), (0, 15)),
        _graded(abs(middle), (0, 5), (0, 30)),
    )
    return Finding(
        "landmarks left and right",
        level,
        f"mirrored, landmark {worst} misses its partner by {float(off[worst]):.2g} mm (mean "
        f"{float(off.mean()):.2g}), by the mirror map up to {float(apart.max()):.2g} mm; wanted "
        f"below 4; the middle is at x = {middle:.2g} mm",
    )


def _reflected(points: Float[Tensor, "*b 3"], middle: float) -> Float[Tensor, "*b 3"]:
    return points * points.new_tensor([-1, 1, 1]) + points.new_tensor([2 * middle, 0, 0])


def _mirror(model: FaceModel) -> Finding:
    mirror, mean = model.mirror.cpu(), _mean(model)
    back = float((mirror[mirror] == torch.arange(len(mirror))).double().mean())
    middle = float((mean[:, 0] + mean[mirror, 0]).mean() / 2)
    off = (_reflected(mean[mirror], middle) - mean).norm(dim=-1)
    rms = float(off.square().mean().sqrt())
    level = _worst(_graded(back, (1, 1), (0, 1)), _graded(rms, (0, 1.5), (0, 6)))
    return Finding(
        "mirror map",
        level,
        f"{back:.1%} of the vertices are their mirror vertex's mirror vertex, wanted all; the mean "
        f"face is asymmetric by {rms:.2g} mm RMS ({float(off.max()):.2g} at most), wanted below "
        "1.5",
    )


def _uv(model: FaceModel) -> list[Finding]:
    uv = model.uv.detach().cpu()
    low, high = float(uv.min()), float(uv.max())
    points = model.landmarks(torch.nn.functional.pad(model.uv, (0, 1)))[:, :2].detach().cpu()
    down = float(points[[48, 54], 1].mean() - points[[36, 45], 1].mean())
    right = float(points[45, 0] - points[36, 0])
    skew = float((uv[:, 0] + uv[model.mirror.cpu(), 0] - 1).abs().mean())
    ways = "" if down > 0 else "; v grows upwards, wanted downwards"
    ways += "" if right > 0 else "; u grows to the subject's right, wanted to the left"
    bounds = _graded(max(-low, high - 1), (-1, 1e-6), (-1, 1e-6))
    level = _worst(bounds, "failure" if ways else "ok", _graded(skew, (0, 0.01), (0, 1)))
    where = f"uv from {low:.3g} to {high:.3g}, wanted in [0, 1]; u and 1 - u of mirrored vertices "
    first = Finding("uv frame", level, where + f"differ by {skew:.2g} on average{ways}")

    return [first, _charts(model)]


def _charts(model: FaceModel) -> Finding:
    """How well the face's triangles lie side by side on the UV map."""
    uv, triangles = model.uv.detach().cpu(), model.part("face").cpu()
    area = _uv_areas(uv, triangles)
    total = max(float(area.abs().sum()), 1e-12)
    flipped = float(area[area * area.sum() < 0].abs().sum()) / total
    clip = torch.cat([2 * uv - 1, torch.zeros(len(uv), 1), torch.ones(len(uv), 1)], -1)
    seen = rasterize(clip[None], triangles, (MAP_SIZE, MAP_SIZE), "cpu").triangle_index >= 0
    covered = float(seen.double().mean())
    twice = max(0.0, total - covered) / max(covered, 1e-12)
    level = _worst(
        _graded(twice, (0, 0.02), (0, 1)),
        _graded(flipped, (0, 0.01), (0, 0.5)),
        _graded(covered, (0.1, 1), (0.01, 1)),
    )
    return Finding(
        "uv charts",
        level,
        f"the face covers {covered:.0%} of the map, {twice:.1%} of that more than once; "
        f"{flipped:.1%} of its triangles' area is turned over; wanted below 2 and 1 %",
    )


def _uv_areas(uv: Float[Tensor, "n 2"], triangles: Int[Tensor, "t 3"]) -> Float[Tensor, " t"]:
    """Signed area of the triangles on the map, shares of the whole map."""
    a, b, c = uv.double()[triangles].unbind(1)
    p, q = b - a, c - a
    return (p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0]) / 2


def _identity(model: FaceModel) -> list[Finding]:
    basis = model.identity_basis.detach().cpu()
    inside = model.region("face").cpu()
    squares = basis.square().sum(-1)[:, inside].mean(1)  # of each mode, mm^2
    rms, modes = float(squares.sum().sqrt()), len(basis)
    half = float(squares[: (modes + 1) // 2].sum() / squares.sum().clamp(min=1e-12))
    people = Finding(
        "identity",
        _worst(_graded(rms, (1.5, 8), (0.2, 30)), _graded(half, (0.5, 1), (0, 1))),
        f"random people differ from the mean by {rms:.2g} mm RMS over the face, wanted 1.5 to 8; "
        f"{modes} modes, the first half carries {half:.0%}",
    )
    return [people, _correlation(basis)]


def _correlation(basis: Float[Tensor, "k n 3"]) -> Finding:
    """The largest cosine between two modes, over all vertices."""
    flat = basis.flatten(1)
    length = flat.norm(dim=-1)
    empty = int((length <= 1e-6 * length.max()).sum()) if len(flat) else 0
    cosine = (flat @ flat.T) / (length[:, None] * length).clamp(min=1e-20)
    worst = float(cosine.fill_diagonal_(0).abs().max()) if len(flat) else 0.0
    level = _worst(_graded(worst, (0, 0.9), (0, 1.1)), "warning" if empty else "ok")
    text = f"two identity modes are alike with a cosine of {worst:.2g}, wanted below 0.9"
    return Finding("modes", level, f"{text}; {empty} do nothing")


def _expressions(model: FaceModel) -> Finding:
    reach = model.expression_basis.detach().cpu().norm(dim=-1).amax(-1)
    reach = reach * model.expression_std.cpu()
    if not len(reach):
        return Finding("expressions", "failure", "the model has no expressions")
    largest, least = float(reach.max()), float(reach.min())
    level = _worst(
        _graded(largest, (2, 60), (0.2, 200)), "warning" if least < 1e-3 * largest else "ok"
    )
    return Finding(
        "expressions",
        level,
        f"{len(reach)} modes move a vertex by {least:.2g} to {largest:.2g} mm at most per standard "
        "deviation, wanted 2 to 60 for the strongest",
    )


def _albedo(model: FaceModel) -> list[Finding]:
    inside = model.region("face").cpu()
    mean, basis = model.albedo_mean.detach().cpu()[inside], model.albedo_basis.detach().cpu()
    people = torch.randn(PEOPLE, len(basis), generator=torch.Generator().manual_seed(0))
    offsets = (people @ basis.flatten(1)).unflatten(-1, basis.shape[1:])[:, inside]
    shares = [float(((a >= 0) & (a <= 1)).double().mean()) for a in (mean, mean + offsets)]
    red, _, blue = mean.double().mean(0).tolist()
    level = _worst(
        _graded(shares[0], (0.999, 1), (0.9, 1)), _graded(shares[1], (0.95, 1), (0.6, 1))
    )
    spread = float(basis.square().sum(0)[inside].mean().sqrt())
    tone = _graded(red - blue, (0, 1), (-1, 1))
    return [
        Finding(
            "albedo",
            level,
            f"{shares[0]:.1%} of the mean face's colours lie in [0, 1], wanted all; of random "
            f"people's {shares[1]:.1%}; these differ by {spread:.2g} RMS",
        ),
        Finding(
            "skin",
            tone,
            f"the mean face is {red:.2f} red and {blue:.2f} blue, wanted more red (else it is BGR)",
        ),
    ]


def _regions(model: FaceModel) -> Finding:
    sizes = {name: int(model.region(name).sum()) for name in model.region_names}
    face = model.region("face").cpu()
    marks = (face[model.landmark_vertices.cpu()].double() * model.landmark_weights.cpu()).sum(-1)
    inner = float((marks[17:] > 0.5).double().mean())
    empty = [name for name, size in sizes.items() if size == 0]
    level = _worst(
        "failure" if sizes["face"] < 50 else "ok",
        "warning" if empty else "ok",
        _graded(inner, (0.9, 1), (0.5, 1)),
    )
    listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
    text = f"vertices in regions: {listed}; the face has {inner:.0%} of the inner landmarks"
    return Finding("regions", level, text)


def _notes(model: FaceModel) -> Finding:
    level: Level = "warning" if model.stand_ins else "ok"
    text = f"not the model's own: {', '.join(model.stand_ins)}. " if model.stand_ins else ""
    return Finding("notes", level, text + ("; ".join(model.notes) or "nothing is approximate"))


def _memory(model: FaceModel) -> Finding:
    bases = (model.identity_basis, model.expression_basis, model.albedo_basis)
    megabytes = sum(basis.numel() * basis.element_size() for basis in bases) / 2**20
    sizes = " + ".join(str(len(basis)) for basis in bases)
    return Finding("memory", "ok", f"{sizes} modes take {megabytes:.0f} MB")
