"""Training signals: one file per objective, one registry."""

from mmkd.models.attention_capture import LayerAttention
from mmkd.objectives.attention_relations import AttentionRelations
from mmkd.objectives.base import AnswerBatch, Losses, Needs, Objective, Outputs, Pairs, Ratio, Spans
from mmkd.objectives.cross_entropy import CrossEntropy
from mmkd.objectives.forward_kl import ForwardKL
from mmkd.objectives.generalised_js import GeneralisedJS
from mmkd.objectives.hidden_states import HiddenStates
from mmkd.objectives.ofa_logits import OfaLogits
from mmkd.objectives.preference import DPO, PairLoss, SimPO, without_rejected
from mmkd.objectives.registry import build, names, options, register
from mmkd.objectives.reverse_kl import ReverseKL
from mmkd.objectives.skewed_kl import SkewedKL
from mmkd.objectives.sparse import SparseTargets
from mmkd.objectives.taid import TAID
from mmkd.objectives.token_loss import TokenLoss, token_losses
from mmkd.objectives.total_variation import TotalVariation
from mmkd.objectives.tower_features import TowerFeatures
from mmkd.objectives.uld import ULD
from mmkd.objectives.voco_attention import VocoAttention

__all__ = [
    "DPO",
    "TAID",
    "ULD",
    "AnswerBatch",
    "AttentionRelations",
    "CrossEntropy",
    "ForwardKL",
    "GeneralisedJS",
    "HiddenStates",
    "LayerAttention",
    "Losses",
    "Needs",
    "Objective",
    "OfaLogits",
    "Outputs",
    "PairLoss",
    "Pairs",
    "Ratio",
    "ReverseKL",
    "SimPO",
    "SkewedKL",
    "Spans",
    "SparseTargets",
    "TokenLoss",
    "TotalVariation",
    "TowerFeatures",
    "VocoAttention",
    "build",
    "names",
    "options",
    "register",
    "token_losses",
    "without_rejected",
]
