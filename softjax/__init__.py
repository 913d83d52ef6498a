"""Softmax and cross-entropy for JAX, with analytic gradients in every mode of differentiation."""

from softjax import losses as losses
from softjax import metrics as metrics
from softjax._cross_entropy import cross_entropy as cross_entropy
from softjax._cross_entropy import statistics as statistics
from softjax._distribution import distribution_cross_entropy as distribution_cross_entropy
from softjax._labels import SparseLabels as SparseLabels
from softjax._linear import linear_cross_entropy as linear_cross_entropy
from softjax._linear_loss import linear_loss as linear_loss
from softjax._linear_rows import TopK as TopK
from softjax._linear_rows import linear_log_probabilities as linear_log_probabilities
from softjax._linear_rows import linear_statistics as linear_statistics
from softjax._linear_rows import linear_top_k as linear_top_k
from softjax._rows import Statistics as Statistics
from softjax._softmax import log_probabilities as log_probabilities
from softjax._softmax import log_softmax as log_softmax
from softjax._softmax import softmax as softmax
from softjax._validation import validate_labels as validate_labels
