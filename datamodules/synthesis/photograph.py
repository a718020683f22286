"""A clip's frames: head and props drawn together, lit, with soft shadows, before a backdrop."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from core.camera import PerspectiveCamera
from core.image import sample
from core.normals import vertex_normals
from core.rasterize import rasterize
from core.rotation import euler_from_rotation, rotation_from_euler
from datamodules.synthesis.illumination import Illumination
from datamodules.synthesis.lamp import SHADOW_BIAS, SHADOW_REACH, lamp_depth, lamp_view
from datamodules.synthesis.noise import smooth_field
from datamodules.synthesis.person import Person, Studio
from datamodules.synthesis.props import Anchor, Prop
from datamodules.synthesis.shading import irradiance_polynomial, shade_samples

SUPERSAMPLING = 2


@dataclass(frozen=True)
class Photographs:
    """What the camera gives before lens and sensor spoil it.

    Attributes:
        images: RGB, about [0, 1], not clipped.
        masks: share of each pixel in which the face is seen.
        hidden: landmarks with something before them, or turned away.
    """

    images: Float[Tensor, "f 3 s s"]
    masks: Float[Tensor, "f 1 s s"]
    hidden: Bool[Tensor, "f 68"]


@dataclass(frozen=True)
class Finish:
    """What spherical harmonics do not explain, of a video.

    Attributes:
        shadow: how much of the strongest source a cast shadow takes, in [0, 1].
        occlusion: how much of all light a crevice loses, in [0, 1].
        gloss: strength of the skin's highlight.
    """

    shadow: float
    occlusion: float
    gloss: float


def random_finish(rng: np.random.Generator, unmodelled: float) -> Finish:
    """Skin from matt to moist, shadows from soft to marked."""
    draw = rng.beta(1.3, 1.6, 3).tolist()
    return Finish(
        shadow=min(1.0, unmodelled * 0.75 * draw[0]),
        occlusion=min(1.0, unmodelled * (0.25 + 0.5 * draw[1])),
        gloss=unmodelled * 0.14 * draw[2],
    )


def take_photographs(
    studio: Studio,
    person: Person,
    vertices: Float[Tensor, "f n 3"],
    props: list[Prop],
    camera: PerspectiveCamera,
    turned: Float[Tensor, "f 3 3"],
    illumination: Illumination,
    finish: Finish,
    backdrop: Float[Tensor, "f 3 s s"],
) -> Photographs:
    """Draw a clip.

    Without props and with a ``Finish`` of zeros a frame is exactly the reflectance map times the
    irradiance of spherical harmonics, averaged over 2 x 2 samples a pixel.

    Args:
        studio: the face model.
        person: who is seen.
        vertices: of the face in each frame, model frame, millimetres.
        props: what else there is.
        camera: of each frame, for pixels of the frame.
        turned: how the head is turned against the body in each frame.
        illumination: one for all frames, or one of each.
        finish: what spherical harmonics do not explain.
        backdrop: of each frame.
    """
    model, frames, size = studio.model, len(vertices), backdrop.shape[-1]
    fine = size * SUPERSAMPLING
    points, triangles, static = _scene(studio, person, vertices, props, turned, finish)
    lens = camera.crop(torch.full((frames,), float(SUPERSAMPLING)), torch.zeros(frames, 2))
    fragments = rasterize(lens.clip(points, (fine, fine)), triangles, (fine, fine))
    normals = camera.rotate(vertex_normals(points, triangles))
    lamp = lamp_view(camera.rotate(points), illumination.direction)
    depth = lamp_depth(lamp, triangles) if finish.shadow > 0 else torch.zeros(frames, 2, 2)
    half = F.normalize(illumination.direction - torch.tensor([0.0, 0.0, 1.0]), dim=-1)
    key = illumination.key.view(-1, 9, 3)[0]  # turning it changes neither of the numbers below
    level = 0.6 * key.norm() / key[0].mean()
    images = torch.empty(frames, size, size, 3)
    masks = torch.empty(frames, size, size)
    tensors = (
        (fragments.triangle_index, fragments.barycentric, triangles),
        (normals, lamp, static, person.albedo_map.permute(1, 2, 0)),
        (depth, level * key[0], backdrop.permute(0, 2, 3, 1), images, masks),
    )
    drawn, looks, rest = ([value.contiguous().numpy() for value in group] for group in tensors)
    polynomials = (irradiance_polynomial(part) for part in (illumination.light, illumination.key))
    lights = [
        np.ascontiguousarray(np.broadcast_to(value, (frames, *shape)))
        for value, shape in zip((*polynomials, half.numpy()), ((9, 3), (9, 3), (3,)), strict=True)
    ]
    shade_samples(
        *drawn,
        len(model.triangles),
        *looks,
        *lights,
        rest[0],
        SHADOW_BIAS / SHADOW_REACH,
        finish.shadow,
        finish.occlusion,
        *rest[1:],
    )
    foreign = fragments.triangle_index >= len(model.triangles)
    hidden = _hidden(studio, vertices, normals, lens, foreign)
    return Photographs(images.permute(0, 3, 1, 2), masks[:, None], hidden)


def _scene(
    studio: Studio,
    person: Person,
    vertices: Tensor,
    props: list[Prop],
    turned: Float[Tensor, "f 3 3"],
    finish: Finish,
) -> tuple[Float[Tensor, "f m 3"], Int[Tensor, "t 3"], Float[Tensor, "m 6"]]:
    """All meshes as one, head's frame, and per vertex: uv and 0 or RGB, open sky, face, gloss."""
    model, frames = studio.model, len(vertices)
    count = model.mean.shape[0]
    gloss = torch.full((count,), finish.gloss)
    if "eyeballs" in model.region_names:
        gloss[model.region("eyeballs")] *= 2.5
    zero, sky = torch.zeros(count, 1), studio.open_sky[:, None]
    face = model.region("face")[:, None].float()
    statics = [torch.cat([model.uv, zero, sky, face, gloss[:, None]], -1)]
    points, triangles, offset = [vertices], [model.triangles], count
    to_head = _body_to_head(turned, studio)
    for prop in props:
        own = torch.from_numpy(np.ascontiguousarray(prop.vertices)).float()
        own = own.expand(frames, -1, -1)
        points.append(to_head(own) if prop.anchor is Anchor.BODY else own)
        triangles.append(torch.from_numpy(np.ascontiguousarray(prop.triangles)).long() + offset)
        offset += len(prop.vertices)
        colour = torch.from_numpy(np.ascontiguousarray(prop.colour)).float()
        rest = torch.tensor([1.0, 0.0, prop.gloss * min(1.0, finish.gloss * 8)])
        statics.append(torch.cat([colour, rest.expand(len(colour), 3)], -1))
    return torch.cat(points, 1), torch.cat(triangles), torch.cat(statics)


def _body_to_head(
    head: Float[Tensor, "f 3 3"], studio: Studio
) -> Callable[[Float[Tensor, "f m 3"]], Float[Tensor, "f m 3"]]:
    """From the body's frame to the head's: shoulders follow the head's turn only in part."""
    chin = torch.from_numpy(studio.landmarks[8]).float()
    pivot = chin + torch.tensor([0.0, -15.0, -85.0])
    pitch, yaw, roll = euler_from_rotation(head)
    turned = rotation_from_euler(0.15 * pitch, 0.35 * yaw, 0.1 * roll)
    relative = head.mT @ turned

    def to_head(points: Float[Tensor, "f m 3"]) -> Float[Tensor, "f m 3"]:
        return (points - pivot) @ relative.mT + pivot

    return to_head


def _hidden(
    studio: Studio,
    vertices: Tensor,
    normals: Tensor,
    lens: PerspectiveCamera,
    foreign: Bool[Tensor, "f h w"],
) -> Bool[Tensor, "f 68"]:
    """Landmarks behind a prop or on skin that is turned away from the camera."""
    model = studio.model
    points = model.landmarks(vertices)
    pixels, _ = lens.project(points)
    behind = sample(foreign.float()[:, None], pixels[:, None], mode="nearest")[:, 0, 0] > 0.5
    view = lens.rotate(points) + lens.translation[:, None]
    outward = model.landmarks(normals[:, : vertices.shape[1]])
    return behind | ((view * outward).sum(-1) > 0)


def moving_backdrop(
    rng: np.random.Generator, picture: Float[Tensor, "3 p p"], frames: int, size: int
) -> Float[Tensor, "f 3 s s"]:
    """A larger picture seen through a window that drifts a little from frame to frame."""
    room = picture.shape[-1] - size
    time = np.stack([np.linspace(0, 1, frames), np.zeros(frames), np.zeros(frames)], -1)
    drift = [smooth_field(rng, time, 2.0, waves=4) for _ in range(2)]
    place = np.stack(drift, -1) * 0.12 + rng.uniform(0.2, 0.8, 2)
    corners = (np.clip(place, 0, 1) * room).round().astype(int)
    return torch.stack([picture[:, y : y + size, x : x + size] for x, y in corners])
