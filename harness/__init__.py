"""Hardware-in-the-loop harness for accelerated SMMUv3 virtualisation on NVIDIA Grace."""
