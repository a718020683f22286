"""The pose of a pinhole camera as six numbers, and a network of its own for them (Deng, MGCNet,
FML).

The zero pose shows the middle of the mean face's landmarks in the middle of the image. Focal length
and distances in the image are given for images of 224 pixels and scaled to others.
"""

from jaxtyping import Float
from torch import Tensor, nn

from core.camera import PerspectiveCamera, frontal
from core.crop import canonical_crop
from core.errors import MonofaceError
from core.face_models import FaceModel
from core.precision import without_autocast
from core.rotation import rotation_from_euler
from methods.encoder import Encoder, check_size

PIXELS = 224  # side of the papers' images, for which focal length and landmark weight are given

# Factors of a network's outputs, ours: its last layer adds up hundreds of features, so that without
# them one step of Adam at 1e-3 can turn the head by half a radian. Translation is in millimetres.
POSE_SCALES = {"angles": 0.1, "translation": 10.0}


class PoseNet(nn.Module):
    """Estimates the pose first, so that what comes after sees a straightened face.

    Ours: the papers' images are aligned by landmarks that a detector finds; here the network learns
    from the landmarks of the training where a face is, so that at prediction none are needed. The
    face is straightened as in CEST (Eq. 10): upright, the middle of its landmarks in the image's
    middle, as large as the mean face is at the zero pose.

    Args:
        image_size: height and width of the images, pixels.
        width: channels after the first layer.
        pivot: about which the head turns, model frame, millimetres.
        focal: of images of 224 pixels, pixels.
        distance_mm: from the camera to the pivot at the zero pose.

    Raises:
        MonofaceError: the width is less than 1, or the images are smaller than
            ``methods.encoder.SMALLEST``.
    """

    pivot: Float[Tensor, "3"]

    def __init__(
        self,
        image_size: int,
        width: int,
        pivot: Float[Tensor, "3"],
        focal: float,
        distance_mm: float,
    ) -> None:
        super().__init__()
        if width < 1:
            raise MonofaceError(f"pose_width is {width}; wanted at least 1, or null for none")
        check_size("pose_width: a network for the pose", image_size)
        self.image_size = image_size
        self.focal, self.distance_mm = focal, distance_mm
        self.encoder = Encoder(3, image_size, 6, width)
        self.register_buffer("pivot", pivot, persistent=False)

    def forward(
        self, images: Float[Tensor, "n 3 h w"]
    ) -> tuple[Float[Tensor, "n 6"], Float[Tensor, "n 3 h w"]]:
        """Angles and translation before ``POSE_SCALES``, in float32, and the straightened images.

        The crop has no gradient: it should not learn to show what is easy to learn from.

        Raises:
            MonofaceError: the images are not of ``image_size``.
        """
        if images.shape[-2:] != (self.image_size, self.image_size):
            raise MonofaceError(
                f"the pose network takes images of {self.image_size} x {self.image_size} pixels, "
                f"got {images.shape[-2]} x {images.shape[-1]}; give data.image_size the model's"
            )
        numbers = self.encoder(images).float()
        return numbers, self.straightened(images, numbers.detach())

    def straightened(
        self, images: Float[Tensor, "n 3 h w"], numbers: Float[Tensor, "n 6"]
    ) -> Float[Tensor, "n 3 h w"]:
        """The images with the pose's scale, in-plane rotation and place undone."""
        size = images.shape[-1]
        angles = POSE_SCALES["angles"] * numbers[:, :3]
        translation = POSE_SCALES["translation"] * numbers[:, 3:]
        focal = self.focal * size / PIXELS
        camera = posed_camera(angles, translation, self.pivot, focal, self.distance_mm, size)
        seen = camera.weak_perspective(self.pivot).about(self.pivot)
        return canonical_crop(images, seen, size, self.distance_mm * size / focal)

    def kernels(self) -> list[Tensor]:
        """Of its strided convolutions."""
        return self.encoder.kernels()


def posed_camera(
    angles: Float[Tensor, "*b 3"],
    translation: Float[Tensor, "*b 3"],
    pivot: Float[Tensor, "3"],
    focal: float,
    distance_mm: float,
    size: int,
) -> PerspectiveCamera:
    """A head's pose as a pinhole camera, in at least float32 also under autocast.

    Args:
        angles: pitch, yaw, roll of the head, radians.
        translation: of the head in the model frame's axes, millimetres.
        pivot: about which the head turns, and which zero translation shows in the image's middle.
        focal: pixels.
        distance_mm: from the camera to the pivot at zero translation.
        size: height and width of the images, pixels.
    """
    with without_autocast(angles):
        turned = frontal(angles) @ rotation_from_euler(*angles.unbind(-1))
        away = angles.new_tensor([0.0, 0.0, distance_mm])
        place = translation @ frontal(angles) + away - turned @ pivot
    batch = angles.shape[:-1]
    return PerspectiveCamera(
        rotation=turned,
        translation=place,
        focal=angles.new_full(batch, focal),
        centre=angles.new_full((*batch, 2), size / 2),
    )


def landmark_pivot(model: FaceModel) -> Float[Tensor, "3"]:
    """The middle of the box of the mean face's landmarks."""
    landmarks = model.landmarks(model.mean)
    return (landmarks.amin(0) + landmarks.amax(0)) / 2
