"""One clip: all that is random about it comes from the numbers of its person, video and clip."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8

from core.camera import frontal
from core.truth import expressed
from datamodules.synthesis import props
from datamodules.synthesis.backdrop import random_backdrop
from datamodules.synthesis.illumination import random_illumination
from datamodules.synthesis.motion import camera_path, camera_rig, expression_path, random_lens
from datamodules.synthesis.noise import generator, smooth_path
from datamodules.synthesis.person import Person, Studio
from datamodules.synthesis.photograph import moving_backdrop, random_finish, take_photographs
from datamodules.synthesis.sensor import detect, expose, random_sensor


@dataclass(frozen=True)
class Clip:
    """A finished clip, ready to be written.

    Attributes:
        frames: RGB.
        masks: share of each pixel in which the face is seen, 255 = all.
        detections: x, y, confidence of 68 landmarks; None where the detector found no face.
        quality: of the JPEG files.
        truth: the arrays that ``core.truth`` describes.
    """

    frames: UInt8[np.ndarray, "f s s 3"]
    masks: UInt8[np.ndarray, "f s s"]
    detections: list[Float[np.ndarray, "68 3"] | None]
    quality: int
    truth: dict[str, np.ndarray]


def make_clip(studio: Studio, person: Person, number: int, video: int, clip: int) -> Clip:
    """One clip of a video of a person: a pure function of the settings and the three numbers."""
    settings, model = studio.settings, studio.model
    frames, size = settings.frames, settings.size
    # of the video: light, lens, sensor, backdrop, hair and clothes
    rng = generator(settings.seed, "video", number, video)
    lens = random_lens(rng, rig=settings.still)
    illumination = random_illumination(rng, float(person.skin.mean()))
    finish = random_finish(rng, settings.unmodelled)
    sensor = random_sensor(rng, settings.degradation, settings.unmodelled)
    picture = random_backdrop(rng, round(size * 1.15))
    marks = model.landmarks(person.neutral).numpy()
    around = props.body(rng, person, marks)
    cover = props.hair(rng, person, marks, over_face=settings.occluders > 0)
    around += [cover] if cover is not None and settings.occluders > 0 else []
    wears_glasses = rng.random() < 0.22 * settings.occluders
    around += [props.glasses(rng, marks)] if wears_glasses else []
    # of the clip: motion and what passes before the face
    rng = generator(settings.seed, "clip", number, video, clip)
    for share, make in (
        (0.1, lambda: props.fingers(rng, person, marks)),
        (0.05, lambda: props.microphone(rng, marks)),
        (0.05, lambda: props.scarf(rng, marks)),
    ):
        if rng.random() < share * settings.occluders:
            around.append(make())
    middle = torch.from_numpy(marks[[27, 33, 36, 45, 8, 2, 14]].mean(0)).float()
    camera = (camera_rig if settings.still else camera_path)(rng, lens, settings, middle)
    turned = camera.head_rotation
    expression = expression_path(rng, frames, model.expression_names)
    flicker = torch.from_numpy(np.exp(0.015 * smooth_path(rng, frames, 1))).float()[:, :, None]
    if settings.still:
        expression = expression[frames // 2].expand(frames, -1)
        flicker = torch.ones_like(flicker)
        # the light is that of somebody before the head, who sees it turned like the body
        illumination = illumination.turned(camera.rotation @ frontal(turned).mT)
        turned = torch.eye(3).expand_as(turned)
    vertices = expressed(model, person.neutral, expression)
    backdrop = moving_backdrop(rng, picture, frames, size)
    photos = take_photographs(
        studio, person, vertices, around, camera, turned, illumination, finish, backdrop
    )
    landmarks = camera.project(model.landmarks(vertices))[0]
    images = expose(rng, photos.images * flicker[..., None], sensor)
    masks = (photos.masks[:, 0] * 255).round().to(torch.uint8).numpy()
    hidden = photos.hidden.numpy()
    detections = detect(rng, landmarks.numpy(), hidden, settings.jitter, settings.dropped)
    truth = {
        "neutral": person.neutral,
        "identity": person.identity,
        "albedo": person.albedo,
        "albedo_map": (person.albedo_map.permute(1, 2, 0) * 255).round().to(torch.uint8),
        "expression": expression,
        "rotation": camera.rotation,
        "translation": camera.translation,
        "focal": camera.focal,
        "centre": camera.centre,
        "light": illumination.light * flicker,
        "landmarks": landmarks,
        "hidden": photos.hidden,
    }
    arrays = {key: value.contiguous().numpy() for key, value in truth.items()}
    return Clip(images, masks, detections, sensor.quality, arrays)
