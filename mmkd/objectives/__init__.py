"""Training signals: one file per objective, one registry."""

from mmkd.models.attention_capture import LayerAttention
from mmkd.objectives.attention_relations import AttentionRelations
from mmkd.objectives.base import AnswerBatch, Losses, Needs, Objective, Outputs, Ratio
from mmkd.objectives.cross_entropy import CrossEntropy
from mmkd.objectives.forward_kl import ForwardKL
from mmkd.objectives.hidden_states import HiddenStates
from mmkd.objectives.ofa_logits import OfaLogits
from mmkd.objectives.registry import build, names, options, register
from mmkd.objectives.token_loss import TokenLoss, token_losses
from mmkd.objectives.voco_attention import VocoAttention

__all__ = [
    "AnswerBatch",
    "AttentionRelations",
    "CrossEntropy",
    "ForwardKL",
    "HiddenStates",
    "LayerAttention",
    "Losses",
    "Needs",
    "Objective",
    "OfaLogits",
    "Outputs",
    "Ratio",
    "TokenLoss",
    "VocoAttention",
    "build",
    "names",
    "options",
    "register",
    "token_losses",
]
