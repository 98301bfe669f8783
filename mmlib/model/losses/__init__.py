"""What is minimised: losses of cosine similarities between the images and captions of a batch.

All are called alike, `loss(image_BD, text_BD, image_id_B, rows)`, and can be shared between processes.
"""

from mmlib.model.losses.base import Loss
from mmlib.model.losses.build import build_loss, load_learned
from mmlib.model.losses.infonce import InfoNCE
from mmlib.model.losses.sigmoid import SigmoidLoss
from mmlib.model.losses.triplet import TripletLoss

__all__ = ["InfoNCE", "Loss", "SigmoidLoss", "TripletLoss", "build_loss", "load_learned"]
