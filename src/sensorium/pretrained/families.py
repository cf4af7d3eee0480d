"""The registry of pretrained families."""

from sensorium.pretrained.bert import BERT
from sensorium.pretrained.clip import CLIP
from sensorium.pretrained.efficientnet import EFFICIENTNET
from sensorium.pretrained.family import PretrainedFamily
from sensorium.pretrained.gpt2 import GPT2
from sensorium.pretrained.llama import LLAMA
from sensorium.pretrained.open_clip import OPEN_CLIP
from sensorium.pretrained.resnet import RESNET
from sensorium.pretrained.siglip import SIGLIP
from sensorium.pretrained.t5 import T5
from sensorium.pretrained.transformers_backbone import BACKBONE
from sensorium.pretrained.vit import TIMM_VIT, VIT
from sensorium.pretrained.whisper import WHISPER

PRETRAINED_FAMILIES: dict[str, PretrainedFamily] = {
    family.name: family
    for family in (
        CLIP,
        OPEN_CLIP,
        SIGLIP,
        BERT,
        T5,
        VIT,
        TIMM_VIT,
        RESNET,
        EFFICIENTNET,
        GPT2,
        LLAMA,
        WHISPER,
        BACKBONE,  # last: any other architecture that transformers knows
    )
}
