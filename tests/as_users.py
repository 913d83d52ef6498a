"""The compiler options of a user. Tests that read a compiled program use them; conftest.py sets faster ones."""

import os

OPTIONS = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
if "fusion_emitters" in os.environ.get("XLA_FLAGS", ""):
    OPTIONS["xla_cpu_use_fusion_emitters"] = True
