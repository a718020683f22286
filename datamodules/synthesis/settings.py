"""What a synthetic set consists of; with the generator's version it determines every byte."""

from dataclasses import dataclass

from core.errors import DataError

GENERATOR_VERSION = 2


@dataclass(frozen=True)
class SynthesisSettings:
    """The settings of a synthetic set.

    Attributes:
        identities: how many people are in train, val and test; nobody is in two of them. Shape is
            learned from many people rather than from many frames of each.
        videos: videos of a person; each has its own light, camera, backdrop, hair and clothes.
        clips: clips of a video; each has its own motion and occluders.
        frames: frames of a clip.
        size: side of a frame, pixels.
        texture: side of the reflectance maps, texels.
        face_model: where people come from, as for ``load_face_model``; all modes are used.
        yaw, pitch, roll: largest head rotation to either side, degrees.
        detail: fine relief that no mode of the face model explains, millimetres RMS.
        occluders: how often something is before the face (glasses, fingers, microphone, scarf),
            relative to the built-in frequencies; 0 = never; the head then has neither hair nor a
            hat that could cover the face.
        unmodelled: strength of what spherical harmonics times reflectance does not explain (cast
            shadow, ambient occlusion, highlights, tone curve); 0 = none.
        degradation: strength of blur, noise and compression; 0 = none, and the frames are PNG
            files.
        jitter: standard deviation of a detected landmark, in % of the face's size.
        dropped: share of the frames in which the detector finds no face.
        still: the frames of a clip are views of one instant, by cameras about a metre away from a
            head that keeps still: one expression, and light that stays with the head.
        seed: another seed, other people.
    """

    identities: tuple[int, int, int] = (720, 40, 60)
    videos: int = 1
    clips: int = 1
    frames: int = 6
    size: int = 160
    texture: int = 256
    face_model: str = "procedural"
    yaw: float = 70.0
    pitch: float = 25.0
    roll: float = 20.0
    detail: float = 0.5
    occluders: float = 1.0
    unmodelled: float = 1.0
    degradation: float = 1.0
    jitter: float = 1.0
    dropped: float = 0.03
    seed: int = 0
    still: bool = False

    def __post_init__(self) -> None:
        counts = {"videos": 1, "clips": 1, "frames": 1, "size": 32, "texture": 32}
        for name, least in counts.items():
            if getattr(self, name) < least:
                raise DataError(
                    f"synthetic set: {name} must be at least {least}, not {getattr(self, name)}"
                )
        if len(self.identities) != 3 or min(self.identities) < 0 or sum(self.identities) == 0:
            raise DataError(
                "synthetic set: identities must be three counts (train, val, test), none negative "
                f"and not all 0; got {self.identities}"
            )
        limits = {"yaw": 85, "pitch": 60, "roll": 60, "dropped": 0.9, "occluders": 4, "jitter": 20}
        limits |= {"unmodelled": 4, "degradation": 4, "detail": 5}
        for name, most in limits.items():
            if not 0 <= getattr(self, name) <= most:
                raise DataError(
                    f"synthetic set: {name} must be in [0, {most}], not {getattr(self, name)}"
                )

    def split(self) -> dict[str, list[int]]:
        """The people of each split, by number."""
        train, val, test = self.identities
        everyone = list(range(train + val + test))
        return {
            "train": everyone[:train],
            "val": everyone[train : train + val],
            "test": everyone[train + val :],
        }
