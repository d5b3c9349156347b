"""Why a model labels a case as it does, with the evidence that a heat map depends on the model; where it is unsure."""
