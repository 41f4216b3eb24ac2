"""What scripts/verify_gpu.sh runs: see there."""
