"""The parts of benchmarks/cuda_run.py: what is counted, who is measured, how processes take turns."""
