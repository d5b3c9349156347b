"""From the data to every value that a pipeline leaves ``auto``, each with its reason.

The rules are those of nnU-Net (Isensee et al., Nature Methods 18, 203-211, 2021), with smaller networks and a
smaller memory budget on CPUs.
"""

from unet_med.planning.fingerprint import CaseFingerprint, ChannelStatistics, Fingerprint, fingerprint
from unet_med.planning.memory import Budget, budget_of, network_elements
from unet_med.planning.plan import Plan, auto_class_weights, make_plan, plan_from_fingerprint
from unet_med.planning.topology import Topology, fit_patch, plan_levels

__all__ = [
    "Budget",
    "CaseFingerprint",
    "ChannelStatistics",
    "Fingerprint",
    "Plan",
    "Topology",
    "auto_class_weights",
    "budget_of",
    "fingerprint",
    "fit_patch",
    "make_plan",
    "network_elements",
    "plan_from_fingerprint",
    "plan_levels",
]
