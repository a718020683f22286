"""Geometry of pairs of views of one rigid face: what both see, one view made from the other, and
how well they agree (MGCNet, Sec. 3.4 to 3.7).

A pair is a target and a source view; all functions take pairs of any batch shape ``*b``, the target
first, and have no loops. The face stands still in the model frame, both cameras look at it: with
x_t = R_t X + t_t and x_s = R_s X + t_s of one point X, a point of the target's camera frame is at

    x_s = R x_t + t,    R = R_s R_t^T,    t = t_s - R t_t

in the source's (``relative_pose``). The paper prints [R_t^-1 R_s | R_t^-1 (t_s - t_t)]: that is the
way from source to target, of poses that map camera to model.

Worked number: the target sees the face from the front at 1000 mm, the source after it has turned by
a yaw of +30 degrees. The model frame's origin is at (0, 0, 1000) mm for both; the point 100 mm in
front of it, (0, 0, 900) for the target, is at (-50, 0, 913.4) for the source.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from core.affine import affine
from core.camera import PerspectiveCamera
from core.image import Size, height_width, pixel_centres, sample
from core.losses import masked_l1
from core.precision import at_least_float32, without_autocast
from core.rasterize import Backend, rasterize
from core.uv import faces_camera

DRAWN = 0.999  # ours: share of the face in what is read, up to rounding
SHORTEST_BASELINE_MM = 1.0  # ours: without a baseline there is no epipolar geometry
FINER = 6  # ours: pixels on the side of a pixel, to find what a source sees at a slant


@dataclass(frozen=True)
class Synthesis:
    """The target view made of the source view; where ``mask`` is 0 it means nothing.

    Attributes:
        image: what the source image shows of the target's surface, Eq. 2.
        depth: what the source's depth says of the target's, millimetres in the target's frame.
        pixels: where in the source image, its pixels.
        mask: 1 where all pixels that were read are of the face drawn in the source view, else 0; no
            gradient. It does not know what hides the point: multiply by ``covisible``.
    """

    image: Float[Tensor, "*b c h w"]
    depth: Float[Tensor, "*b 1 h w"]
    pixels: Float[Tensor, "*b h w 2"]
    mask: Float[Tensor, "*b 1 h w"]


def paired(
    values: Shaped[Tensor, "b v *rest"],
) -> tuple[Shaped[Tensor, "b s *rest"], Shaped[Tensor, "b s *rest"]]:
    """What belongs to the target and to the source of each pair of a clip.

    Args:
        values: of v views; the middle one is the target, the others are the sources.
    """
    views = values.shape[1]
    middle = views // 2
    sources = torch.cat([values[:, :middle], values[:, middle + 1 :]], 1)
    return values[:, middle : middle + 1].expand_as(sources), sources


def relative_pose(
    target: PerspectiveCamera, source: PerspectiveCamera
) -> tuple[Float[Tensor, "*b 3 3"], Float[Tensor, "*b 3"]]:
    """R and t with x_s = R x_t + t, from the target's camera frame to the source's, millimetres."""
    with without_autocast(target.rotation):
        rotation = source.rotation @ target.rotation.mT
        moved = (rotation @ target.translation[..., None])[..., 0]
    return rotation, source.translation - moved


@torch.no_grad()
def seen_triangles(
    vertices: Float[Tensor, "*b n 3"],
    camera: PerspectiveCamera,
    triangles: Int[Tensor, "t 3"],
    size: Size,
    finer: int = FINER,
    backend: Backend = "auto",
) -> Int[Tensor, "*b fh fw"]:
    """Which triangles a view shows, in an image that is finer than the view; no gradient.

    For the source of ``covisible``: surfaces that it sees at a slant have triangles narrower than
    its pixels, which no pixel's centre meets.

    Args:
        vertices: millimetres, model frame.
        camera: of the view.
        triangles: counter-clockwise seen from outside.
        size: of the view: (height, width), or one number for squares.
        finer: how many pixels there are on the side of one of the view's.
        backend: of ``core.rasterize.rasterize``.

    Returns:
        The triangle that each of the finer pixels sees, -1 = none.
    """
    height, width = height_width(size)
    clip = at_least_float32(camera.clip(vertices, (height, width)))
    fine = (finer * height, finer * width)
    drawn = rasterize(clip.reshape(-1, *clip.shape[-2:]), triangles, fine, backend)
    return drawn.triangle_index.view(*clip.shape[:-2], *fine)


def covisible(
    target_index: Int[Tensor, "*b h w"],
    source_index: Int[Tensor, "*b fh fw"],
    target_pixels: Float[Tensor, "*b n 2"],
    source_pixels: Float[Tensor, "*b n 2"],
    triangles: Int[Tensor, "t 3"],
) -> Float[Tensor, "*b 1 h w"]:
    """C_s of Sec. 3.4: where the target view sees a covisible triangle, 1, else 0; no gradient.

    Covisible points are the vertices of triangles that both views see; covisible triangles those
    with only such corners. In the paper one is enough; that cannot be chosen here, as beside what
    hides the face from the source it lets in a ring of hidden triangles more. Ours, too: they must
    show their outside to both views, as the inside of an open mesh, seen through a hole, is no part
    of the face, and a triangle at the source's silhouette that is turned away from it is not seen
    there. Where the source's pixels are larger than its triangles, some are missed: hence finer
    ones, by ``seen_triangles``. Against rays, 100 pairs of views of 224 pixels: intersection over
    union 0.985 at worst; 0.96 with one corner, or with the view's own pixels.

    Args:
        target_index: the triangle that each pixel sees, -1 = none.
        source_index: the same of the source view, of any size: ``seen_triangles``.
        target_pixels: where the vertices are in the target view.
        source_pixels: the same in the source view.
        triangles: counter-clockwise seen from outside.
    """
    front, source_front = (
        faces_camera(pixels.detach(), triangles) for pixels in (target_pixels, source_pixels)
    )
    # the corners of what the target's pixels see are seen by the target: the source decides
    count, vertices = len(triangles), target_pixels.shape[-2]
    none = torch.zeros(*front.shape[:-1], count + 1, dtype=torch.bool, device=front.device)
    shown = source_index.where(source_index >= 0, count).flatten(-2)
    drawn = none.scatter(-1, shown, True)[..., :count] & source_front
    corners = triangles.where(drawn[..., None], vertices).flatten(-2)
    none = torch.zeros(*front.shape[:-1], vertices + 1, dtype=torch.bool, device=front.device)
    seen = none.scatter(-1, corners, True)[..., :vertices]
    both = seen[..., triangles].all(-1) & front & source_front
    found = both.gather(-1, target_index.flatten(-2).clamp(min=0)).view(target_index.shape)
    return (found & (target_index >= 0))[..., None, :, :].float()


def synthesize(
    target_depth: Float[Tensor, "*b 1 h w"],
    target: PerspectiveCamera,
    source_image: Float[Tensor, "*b c h w"],
    source_depth: Float[Tensor, "*b 1 h w"],
    source: PerspectiveCamera,
) -> Synthesis:
    """View synthesis, Eq. 2: p_s ~ K_s P_t->s D_t(p_t) K_t^-1 p_t, read from the source view.

    The source's depth is a distance from another camera: it is carried back to the target's frame,
    z of P_s->t D_s(p_s) K_s^-1 p_s, to be comparable. Gradients reach the source's image, both
    depths and both cameras.

    Args:
        target_depth: millimetres along the target camera's z, 0 where nothing is seen.
        target: its camera.
        source_image: any number of channels.
        source_depth: as the target's.
        source: its camera.
    """
    height, width = target_depth.shape[-2:]
    with without_autocast(target_depth):
        target_depth, source_depth = at_least_float32(target_depth), at_least_float32(source_depth)
        drawn = (target_depth > 0).detach()
        # the background gets the depth of the origin: any that lies before both cameras
        filled = target_depth.where(drawn, target.translation[..., 2, None, None, None].detach())
        rotation, translation = relative_pose(target, source)
        grid = pixel_centres((height, width), target_depth).expand(*filled.shape[:-3], -1, -1, -1)
        points = affine(_lift(grid, filled, target), rotation, translation)
        depth = points[..., 2:]
        pixels = source.focal[..., None, None] * points[..., :2] / depth
        pixels = (pixels + source.centre[..., None, :]).unflatten(-2, (height, width))
        there = (source_depth > 0).detach().to(source_depth)
        read = sample(torch.cat([source_image, source_depth, there], -3), pixels)
        image, found, share = read.split([source_image.shape[-3], 1, 1], -3)
        back = rotation.mT[..., 2:, :]  # x_t = R^T (x_s - t), of which z is wanted
        offset = -(back @ translation[..., None])[..., 0]
        carried = affine(_lift(pixels, found, source), back, offset)
        mask = drawn & (share > DRAWN) & (depth > 0).mT.unflatten(-1, (height, width))
    return Synthesis(
        image=image,
        depth=carried.mT.unflatten(-1, (height, width)),
        pixels=pixels,
        mask=mask.to(image),
    )


def _lift(
    pixels: Float[Tensor, "*b h w 2"], depth: Float[Tensor, "*b 1 h w"], camera: PerspectiveCamera
) -> Float[Tensor, "*b p 3"]:
    """D(p) K^-1 p: the points of the camera frame that are seen at pixels, row by row."""
    rays = (pixels - camera.centre[..., None, None, :]) / camera.focal[..., None, None, None]
    along = depth.movedim(-3, -1)
    return torch.cat([rays * along, along], -1).flatten(-3, -2)


def pixel_consistency(
    synthesis: Synthesis, image: Float[Tensor, "*b c h w"], mask: Float[Tensor, "*b 1 h w"]
) -> Float[Tensor, ""]:
    """Eq. 3: |I_t - synthesized| where both the mask and the synthesis count.

    Averaged over pixels and channels of each pair, then over the pairs that have any; 0 if none.

    Args:
        synthesis: of the target.
        image: the target.
        mask: of ``covisible``; 0 for pairs that do not count.
    """
    return masked_l1(synthesis.image, image, mask * synthesis.mask)


def depth_consistency(
    synthesis: Synthesis, depth: Float[Tensor, "*b 1 h w"], mask: Float[Tensor, "*b 1 h w"]
) -> Float[Tensor, ""]:
    """Eq. 4: |S D~ - D_t| in millimetres, S = ``depth_ratio``; averaged as Eq. 3."""
    mask = mask * synthesis.mask
    ratio = depth_ratio(synthesis, depth, mask)[..., None, None, None]
    return masked_l1(ratio * synthesis.depth, depth, mask)


def depth_ratio(
    synthesis: Synthesis, depth: Float[Tensor, "*b 1 h w"], mask: Float[Tensor, "*b 1 h w"]
) -> Float[Tensor, "*b"]:
    """S of Eq. 4: how much too small the synthesized depth is as a whole; 1 for an empty mask."""
    dims = (-3, -2, -1)
    mask = mask * synthesis.mask
    some = mask.sum(dims) > 0
    above, below = (depth * mask).sum(dims), (synthesis.depth * mask).sum(dims)
    return above.where(some, 1) / below.where(some, 1)


def essential_matrix(
    rotation: Float[Tensor, "*b 3 3"], translation: Float[Tensor, "*b 3"]
) -> Float[Tensor, "*b 3 3"]:
    """E = [t]_x R of a relative pose, t of unit length: x_s^T E x_t = 0 for every point.

    0 if t is shorter than ``SHORTEST_BASELINE_MM``; no gradient then.
    """
    length = torch.linalg.vector_norm(translation, dim=-1, keepdim=True)
    far = length >= SHORTEST_BASELINE_MM
    unit = translation.where(far, 0) / length.where(far, 1)
    with without_autocast(rotation):
        # column by column: [t]_x r = t x r
        return torch.linalg.cross(unit[..., None].expand_as(rotation), rotation, dim=-2)


def epipolar_distance(
    target_points: Float[Tensor, "*b n 2"],
    source_points: Float[Tensor, "*b n 2"],
    target: PerspectiveCamera,
    source: PerspectiveCamera,
) -> Float[Tensor, "*b n"]:
    """Eq. 5: how far points are from the epipolar lines of their partners, pixels.

    The mean of the distances in both images. 0, without gradient, for pairs without a baseline, and
    for points at an epipole. Gradients reach both cameras and the points.

    Args:
        target_points: pixels of the target image.
        source_points: the same points of the face, pixels of the source image.
        target: the target's camera.
        source: the source's camera.
    """
    essential = essential_matrix(*relative_pose(target, source))
    with without_autocast(essential):
        at_target, at_source = _rays(target_points, target), _rays(source_points, source)
        lines = affine(at_target, essential)
        lines_back = affine(at_source, essential.mT.contiguous())
    miss = (at_source * lines).sum(-1).abs()
    there = miss * source.focal[..., None] * _inverse_length(lines[..., :2])
    back = miss * target.focal[..., None] * _inverse_length(lines_back[..., :2])
    return (there + back) / 2


def epipolar_consistency(
    target_points: Float[Tensor, "*b n 2"],
    source_points: Float[Tensor, "*b n 2"],
    confidence: Float[Tensor, "*b n"],
    target: PerspectiveCamera,
    source: PerspectiveCamera,
) -> Float[Tensor, ""]:
    """Eq. 5: ``epipolar_distance``, pixels.

    Averaged over the points of each pair, weighted with their confidence, then over the pairs that
    have any confident point; 0 if none. (The paper sums over the points.)

    Args:
        target_points: as for ``epipolar_distance``; finite also where missing.
        source_points: the same.
        confidence: in [0, 1]; 0 = missing in one of the images.
        target: the target's camera.
        source: the source's camera.
    """
    distance = epipolar_distance(target_points, source_points, target, source)
    weight = confidence.sum(-1)
    error = (distance * confidence).sum(-1) / weight.clamp(min=1)
    return error.sum() / (weight > 0).sum().clamp(min=1)


def epipolar_lines(
    target_points: Float[Tensor, "*b n 2"], target: PerspectiveCamera, source: PerspectiveCamera
) -> Float[Tensor, "*b n 3"]:
    """The lines of the source image on which points of the target lie.

    (a, b, c) with a x + b y + c = 0 at the line's pixels, (a, b) of unit length; 0 where there is
    none, as in ``epipolar_distance``.
    """
    lines = affine(_rays(target_points, target), essential_matrix(*relative_pose(target, source)))
    lines = lines * _inverse_length(lines[..., :2])[..., None]
    along = lines[..., :2]
    offset = source.focal[..., None] * lines[..., 2] - (along * source.centre[..., None, :]).sum(-1)
    return torch.cat([along, offset[..., None]], -1)


def _rays(pixels: Tensor, camera: PerspectiveCamera) -> Tensor:
    """K^-1 p, "*b n 3"."""
    rays = (pixels - camera.centre[..., None, :]) / camera.focal[..., None, None]
    return torch.cat([rays, torch.ones_like(rays[..., :1])], -1)


def _inverse_length(vectors: Tensor) -> Tensor:
    """1 / |v|; 0, without gradient, for v = 0."""
    squared = vectors.square().sum(-1)
    empty = squared == 0
    return squared.where(~empty, 1).rsqrt().where(~empty, 0)
