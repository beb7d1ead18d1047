"""The nodes of the pack. NODES is the list that the host receives."""

from comfy_api.latest import io

from .attention_maps import InnerAttentionMaps
from .attention_spectrum import InnerAttentionSpectrum
from .classifier_guidance import InnerClassifierGuidance
from .classifier_head_files import InnerLoadClassifierHead, InnerSaveClassifierHead
from .demo_model import InnerLoadDemoModel
from .demo_scenes import InnerDemoScenes
from .depth_aware_guidance import InnerDepthAwareGuidance
from .depth_estimate import InnerDepthEstimate
from .depth_head_files import InnerLoadDepthHead, InnerSaveDepthHead
from .depth_prior_files import InnerLoadDepthPrior, InnerSaveDepthPrior
from .feature_maps import InnerFeatureMaps
from .record import InnerRecordAttention, InnerRecordFeatures
from .self_attention_guidance import InnerSelfAttentionGuidance
from .train_classifier_head import InnerTrainClassifierHead
from .train_depth_head import InnerTrainDepthHead
from .train_depth_prior import InnerTrainDepthPrior

NODES: list[type[io.ComfyNode]] = [
    InnerLoadDemoModel,
    InnerDemoScenes,
    InnerSelfAttentionGuidance,
    InnerDepthAwareGuidance,
    InnerClassifierGuidance,
    InnerLoadDepthHead,
    InnerSaveDepthHead,
    InnerTrainDepthPrior,
    InnerLoadDepthPrior,
    InnerSaveDepthPrior,
    InnerTrainDepthHead,
    InnerTrainClassifierHead,
    InnerLoadClassifierHead,
    InnerSaveClassifierHead,
    InnerDepthEstimate,
    InnerRecordAttention,
    InnerRecordFeatures,
    InnerAttentionMaps,
    InnerFeatureMaps,
    InnerAttentionSpectrum,
]
