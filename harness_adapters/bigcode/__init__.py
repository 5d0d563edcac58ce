"""bigcode-evaluation-harness on merges: ``accelerate launch -m harness_adapters.bigcode``."""
