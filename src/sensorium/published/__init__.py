"""Other people's trained weights: files, names, tokenizers; one file a family."""
from sensorium.published.backbone import BACKBONE
from sensorium.published.bert import BERT
from sensorium.published.clip import CLIP
from sensorium.published.efficientnet import EFFICIENTNET
from sensorium.published.gpt2 import GPT2
from sensorium.published.llama import LLAMA
from sensorium.published.open_clip import OPEN_CLIP
from sensorium.published.published import PretrainedFamily
from sensorium.published.resnet import RESNET
from sensorium.published.siglip import SIGLIP
from sensorium.published.t5 import T5
from sensorium.published.vit import TIMM_VIT, VIT
from sensorium.published.whisper import WHISPER

PRETRAINED_FAMILIES: dict[str, PretrainedFamily] = {family.name: family for family in (
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
    BACKBONE,                                           # whatever else transformers knows: last
)}
